"""What all scorers share. A score is a number for which higher is worse, or None with the reason.

Reasons read `<kind>: <detail>`, so that failures can be counted by kind: `empty: ...`, `RecursionError: ...`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from phf_ray.records import Scored, ScorerIdentity, Span
from phf_ray.scorers.origin import config_name, versions_from_outside

# A score per character needs a character.
EMPTY = Scored(None, "empty: the text has no characters")


class ScorerSettings(BaseModel):
    """What a scorer's config may say besides `class_name`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str


class Scorer(ABC):
    """Built once per process, since construction loads weights; the config travels, not the scorer."""

    Settings: ClassVar[type[ScorerSettings]]
    unit: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Packages whose version can change a score."""

    runs_on_device: ClassVar[bool] = False
    """It takes a GPU if it sees one: `Settings` has the field `device`, and `scoring.pools.gpu` holds its actors."""
    is_batched: ClassVar[bool] = False
    """Texts of several documents come in one call, which fills a model's batches. Not if it overrides
    `score_segments`."""
    uses_reference_date: ClassVar[bool] = False
    """`Settings` has the field `reference_date`; it is `scoring.reference_date` unless the scorer's config says it."""
    default_segmenter: ClassVar[Literal["sentences", "lines", "document"]] = "sentences"
    """How the server cuts texts unless it is told how."""
    measures: ClassVar[Literal["toxicity", "personal_data", "code_style"] | None] = None
    """What the red LM is told to look for, and which endpoints of the server ask this scorer: toxicity, with
    `class_scores`, moderations and Perspective; personal_data, with `spans`, Presidio. None: no endpoint, and the
    instruction of the red LM must be configured."""
    version: ClassVar[str | None] = None
    """Part of the identity of a scorer from outside this package. Change it when scores change for a reason that its
    module does not show."""

    num_truncated: int = 0
    """Texts so far of which only the beginning was read."""

    def __init__(self, settings: ScorerSettings):
        self.name = settings.name
        self._settings = settings

    @abstractmethod
    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        """One per text, same order; each text is scored on its own, so neither order nor company matters."""

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """As `score_all`, without the reasons."""
        return [scored.score for scored in self.score_all(texts)]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        """One per segment of ONE document, in the context of that document where the scorer needs context."""
        return self.score_all(segments)

    def identity(self) -> ScorerIdentity:
        return ScorerIdentity(
            name=self.name,
            class_name=config_name(type(self)),
            unit=self.unit,
            versions={package: version(package) for package in self.packages} | versions_from_outside(type(self)),
            settings=self._identity_settings(),
        )

    @classmethod
    def described(cls, settings: Any) -> dict[str, Any]:
        """What is known of the identity without loading weights."""
        return cls(settings).identity().to_json()

    @classmethod
    def known_weights(cls, settings: Any) -> dict[str, str]:  # noqa: ARG003  of a model it names the folder
        """Hash of weights -> name, of this model and those beside it; as far as files tell without loading them."""
        return {}

    @classmethod
    def languages(cls, settings: Any) -> tuple[str, ...]:  # noqa: ARG003  of a model it decides
        """Languages of the texts that it can judge, where that is prose."""
        return ("en",)

    def _identity_settings(self) -> dict[str, Any]:
        """The settings that can change a score."""
        where = {"device"} if self.runs_on_device else set()
        return self._settings.model_dump(mode="json", exclude={"name", *where})


@runtime_checkable
class FindsSpans(Protocol):
    """A scorer that can say where in the text it found something."""

    def spans(self, text: str) -> list[Span]: ...


@runtime_checkable
class HasClasses(Protocol):
    """A scorer that can judge several kinds of harm."""

    def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | None]:
        """The probability of every class; None for a text that can't be scored."""
        ...


def failure(error: Exception) -> Scored:
    """The score of a text on which a detector gave up."""
    return Scored(None, f"{type(error).__name__}: {error}"[:500])
