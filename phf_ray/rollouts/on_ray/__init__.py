"""Rollouts on Ray: the runners of best-of-n and of training."""
