"""Algorithms of reinforcement learning: what of a round of samples is learned, and with which weights.

In: the rewards and log-probabilities of a round (`RoundArrays`). Out: `Weighed`, the rows to learn with numbers for
each token, and the config of the objective that learns them. Pure numpy, one file per algorithm; none of them sees a
model, a file or a text. Open `base.py` first, then `rloo.py`.
"""
