"""Section `scoring`: scorers, segmenter, actor pools, and the failures that a job tolerates."""

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
    """Custom Ray resources that an actor also needs."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self


class GpuPoolConfig(PoolConfig):
    num_gpus: Annotated[float, Field(ge=0)] = 1.0
    """If any key of `pools.gpu` is set, the job waits for GPUs that its cluster does not have yet."""


class Pools(Section):
    cpu: PoolConfig = PoolConfig()
    gpu: GpuPoolConfig = GpuPoolConfig()
    """Pool of the scorers that run on a GPU."""


class ScoringConfig(Section):
    scorers: tuple[dict[str, Any], ...] = ()
    """Each is `{class_name: ..., ...}`, with `my_module:MyScorer` for your own class. Training uses the first."""
    segmenter: Literal["sentences", "lines", "document"] = "sentences"
    pools: Pools = Pools()
    max_failed_fraction: Fraction = 0.01
    """The job stops if more than this share of segments could not be scored, of records could not be read, or of the
    input files (their number or their bytes) could not be read to their end. Up to ten rejected records never stop
    it, if they are at most half of all records."""
    text_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """If a scorer takes longer on a text, the text gets no score. A text is a segment, for PEP8 a document."""
    reference_date: str = "2026-11-20"
    """Day from which ages and relative dates are counted, so that scores do not change with today's date."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for scorer in self.scorers:
            if "class_name" not in scorer:
                raise ValueError(f"scorer {scorer!r} has no class_name; write {{class_name: PEP8Scorer}}")
        return self
