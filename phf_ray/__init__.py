"""Pretraining language models with human preferences, on Ray."""

__version__ = "0.1.0"
