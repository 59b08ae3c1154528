"""Evaluation: samples from served models, their scores, KL, attacks, and a report of them.

In: models and scorers behind URLs (or in this process), scenarios. Out: `samples.parquet` and a report. `plan.py` fixes
every request, `draw.py` sends the requests, `run.py` runs the whole evaluation; `report/` turns samples into figures
and a page; `kl/` measures the distance from a reference, `attack/` searches for prompts that bring out the worst;
`weights.py` evaluates a run's weights while the run trains. Open `run.py` first.
"""
