"""Engines that answer requests: a model in this process, a model on another server, a scorer.

In: requests that the API has checked. Out: completions, scores. `local.py` runs the engine in a thread (`thread.py`),
`upstream.py` asks another server, `scorer.py` scores. No Ray here. Open `local.py` first.
"""
