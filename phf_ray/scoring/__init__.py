"""Scores a whole corpus shard by shard, each exactly once, however often the job is interrupted.

In: a `ScoringRequest` (configuration, input, limits). Out: a folder with parts, a manifest and a data card.
`plan.py` fixes the work, `shard.py` scores one shard, `job.py` scores them all. `executor.py` runs shards in this
process, `on_ray.py` on a cluster. `estimate.py` estimates the cost in advance. Open `job.py` first.
"""
