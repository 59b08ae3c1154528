"""Training: one loop for every objective, with exact resume on any number of workers.

In: token blocks, a configuration, a run directory. Out: checkpoints, rows of metrics, a summary.
`driver.py` runs in the job, `worker.py` on every rank, around `loop.py` and `step.py`. `on_ray.py` starts the ranks
under Ray Train; `in_process.py` runs a single rank without Ray. Open `loop.py` first, then `worker.py`.
"""
