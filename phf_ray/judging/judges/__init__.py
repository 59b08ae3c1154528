"""Judges in this process: rules, scorers, scorers with stated biases, and classes of your own. Open `base.py` first."""
