"""Pretraining language models with human preferences, on Ray."""

from phf_ray.storage.object_stores import register

__version__ = "0.1.0"

# Wherever this is imported: in jobs, in Ray's workers, in replicas.
register()
