"""The tutorial's experiments as scripts: python -m experiments NAME."""
