"""Compares models with the base that they were trained from, on prompts that no round saw.

In: folders of models, prompts, a gold reward. Out: figures of each with intervals, what is wrong with a gain, a page.
`answers.py` draws and judges the answers as a round does, `degenerate.py` says which of them are none, `arms.py`
computes the figures and `verdict.py` says who wins. Open `arms.py` first.
"""
