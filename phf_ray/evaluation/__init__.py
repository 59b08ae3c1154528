"""Evaluation: samples from served models, their scores, KL, attacks, and the report made of them.

In: models and scorers behind URLs (or in this process), scenarios. Out: `samples.parquet` and a report. `plan.py` fixes
every request, `draw.py` asks, `run.py` does the whole; `report/` turns samples into figures and a page; `kl/` measures
the distance from a reference, `attack/` looks for prompts that bring out the worst; `weights.py` measures a run's
weights beside its training. Open `run.py` first.
"""
