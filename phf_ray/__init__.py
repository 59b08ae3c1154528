"""Pretraining language models with human preferences, on Ray."""

from phf_ray.storage.object_stores import register

__version__ = "0.1.0"

# At import, so that it holds in every process: jobs, Ray's workers, replicas.
register()
