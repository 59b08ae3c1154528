"""Rollouts on Ray."""
