"""The tutorial's lessons as scripts: python -m experiments NAME."""
