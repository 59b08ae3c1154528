"""Scoring: a whole corpus scored, shard by shard, exactly once, from any number of interruptions.

In: a `ScoringRequest` (configuration, input, limits). Out: a folder with parts, a manifest and a data card.
`plan.py` fixes the work, `shard.py` does one shard, `job.py` does them all; `executor.py` runs shards in this process,
`on_ray.py` on a cluster. `estimate.py` tells the cost beforehand. Open `job.py` first.
"""
