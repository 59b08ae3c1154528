"""The base class of all scorers. A score is a number (higher is worse), or None with the reason.

Reasons read `<kind>: <detail>`, so that failures can be counted by kind: `empty: ...`, `RecursionError: ...`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from phf_ray.records import Scored, ScorerIdentity, Span
from phf_ray.scorers.origin import config_name, versions_of_code

# A text without characters has no score per character.
EMPTY = Scored(None, "empty: the text has no characters")


class ScorerSettings(BaseModel):
    """The keys that a scorer's config may have in addition to `class_name`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str


class Scorer(ABC):
    """Scores texts. Every process builds its own scorer from the config, once, because building it loads weights."""

    Settings: ClassVar[type[ScorerSettings]]
    unit: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    """Packages whose version can change a score."""

    runs_on_device: ClassVar[bool] = False
    """Whether the scorer uses a GPU if it sees one. If True, `Settings` must have the field `device`, and the scorer's
    actors run in `scoring.pools.gpu`."""
    is_batched: ClassVar[bool] = False
    """Whether one call may get texts of several documents, which fills a model's batches. No effect if the class
    overrides `score_segments`."""
    uses_reference_date: ClassVar[bool] = False
    """Whether `Settings` has the field `reference_date`, by default `scoring.reference_date`."""
    default_segmenter: ClassVar[Literal["sentences", "lines", "document"]] = "sentences"
    """How the server cuts texts unless its settings say otherwise."""
    measures: ClassVar[Literal["toxicity", "personal_data", "code_style", "reward"] | None] = None
    """Decides the red LM's instruction and the server's endpoints that ask this scorer: moderations and Perspective for
    toxicity (needs `class_scores`), Presidio for personal_data (needs `spans`), /get_reward for reward, which is minus
    the score (needs `score_answers`). None: no endpoint asks it. Without an instruction for it, as for reward and None,
    the red LM's must be configured."""
    text_suffixes: ClassVar[tuple[str, ...] | None] = None
    """Suffixes of the text files that the scorer can judge; others in a folder are left out. None: any text."""
    version: ClassVar[str | None] = None
    """Part of the identity. Change it if scores change for a reason that no other version shows: in this package, the
    scorer's own code."""

    num_truncated: int = 0
    """Number of texts so far that were too long, so that only their beginning was scored."""

    def __init__(self, settings: ScorerSettings):
        self.name = settings.name
        self._settings = settings

    @abstractmethod
    def score_all(self, texts: Sequence[str]) -> list[Scored]:
        """Return one score per text, in the same order. Neither the order nor the other texts may change a score."""

    def score_texts(self, texts: Sequence[str]) -> list[float | None]:
        """Like `score_all`, without the reasons."""
        return [scored.score for scored in self.score_all(texts)]

    def score_segments(self, segments: Sequence[str]) -> list[Scored]:
        """Return one score per segment of ONE document. A scorer that needs context may look at the whole document."""
        return self.score_all(segments)

    def identity(self) -> ScorerIdentity:
        return ScorerIdentity(
            name=self.name,
            class_name=config_name(type(self)),
            unit=self.unit,
            versions={package: version(package) for package in self.packages} | versions_of_code(type(self)),
            settings=self._identity_settings(),
        )

    @classmethod
    def described(cls, settings: Any) -> dict[str, Any]:
        """Return the part of the identity that is known without loading weights."""
        return cls(settings).identity().to_json()

    @classmethod
    def known_weights(cls, settings: Any) -> dict[str, str]:  # noqa: ARG003  a model's settings name its folder
        """Return weights hash -> name for this model and those beside it, if files tell without loading weights."""
        return {}

    @classmethod
    def languages(cls, settings: Any) -> tuple[str, ...]:  # noqa: ARG003  a model's settings decide
        """Languages that the scorer can judge, if it judges prose."""
        return ("en",)

    @classmethod
    def span_types(cls, settings: Any) -> tuple[str, ...] | None:  # noqa: ARG003  a scorer with spans may say it
        """Return the types that the scorer's spans can have; None if it does not say."""
        return None

    def _identity_settings(self) -> dict[str, Any]:
        """Return the settings that can change a score."""
        where = {"device"} if self.runs_on_device else set()
        return self._settings.model_dump(mode="json", exclude={"name", *where})


@runtime_checkable
class FindsSpans(Protocol):
    """A scorer that can say where in the text it found something."""

    def spans(self, text: str) -> list[Span]: ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A scorer that can judge an answer to its prompt."""

    def score_answers(self, answers: Sequence[tuple[str, str]]) -> list[Scored]:
        """Return one score per pair of prompt and answer, in the same order."""
        ...


@runtime_checkable
class HasClasses(Protocol):
    """A scorer that can judge several kinds of harm."""

    def class_scores(self, texts: Sequence[str]) -> list[dict[str, float] | None]:
        """Return the probability of every class for each text; None if the text can't be scored."""
        ...


def failure(error: Exception) -> Scored:
    """Return a missing score, with `error` as the reason."""
    return Scored(None, f"{type(error).__name__}: {error}"[:500])
