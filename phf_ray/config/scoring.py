"""Section `scoring`: scorers, segmenter, actor pools, and how many failures a job tolerates."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Fraction, Section


class PoolConfig(Section):
    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    """null: as many as the cluster has room for."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, float] = {}
    """Custom Ray resources that an actor needs besides."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self


class GpuPoolConfig(PoolConfig):
    num_gpus: Annotated[float, Field(ge=0)] = 1.0
    """Where any key of `pools.gpu` is set, the job waits for GPUs that its cluster does not have yet."""


class Pools(Section):
    cpu: PoolConfig = PoolConfig()
    gpu: GpuPoolConfig = GpuPoolConfig()
    """Of scorers that run on a GPU."""


class ScoringConfig(Section):
    scorers: tuple[dict[str, Any], ...] = ()
    """The first is the one trained on; each is `{class_name: ..., ...}`, one of your own `my_module:MyScorer`."""
    segmenter: Literal["sentences", "lines", "document"] = "sentences"
    pools: Pools = Pools()
    max_failed_fraction: Fraction = 0.01
    """The job stops when more than this share of the segments could not be scored, or of the records not be read. Ten
    records, if they are at most half of all, never stop it."""
    text_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A text on which a scorer takes longer has no score: a segment, or for PEP8 a document."""
    reference_date: str = "2026-11-20"
    """Dates and ages are judged from here, so scores do not change with the day."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for scorer in self.scorers:
            if "class_name" not in scorer:
                raise ValueError(f"scorer {scorer!r} has no class_name; write {{class_name: PEP8Scorer}}")
        return self
