"""Answers of models to instructions, one each, drawn as the samples of an evaluation are. Nothing is scored.

In: instructions, models as an evaluation has them, a template each. Out: an answer to each instruction, or the reason
why there is none. `plan.py` fixes what is asked, `draw.py` asks, `store.py` keeps the answers, `run.py` draws what is
missing. Open `run.py` first.
"""
