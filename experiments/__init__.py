"""The tutorial's lessons, scripted: python -m experiments NAME."""
