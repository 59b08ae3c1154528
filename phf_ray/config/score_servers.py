"""Judges that are scorers or reward models behind a URL: where they are, and what they are shown."""

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from phf_ray.config.base import Positive, Section

ANSWER_PLACE = "{answer}"


class ScoreServer(Section):
    url: str
    key_env: str | None = None
    """Environment variable that holds the server's key; null: PHF_API_KEY."""
    texts_at_once: Positive = 64
    """Answers in a request."""
    max_in_flight: Positive = 4
    """Requests sent and not answered, of each process."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """How long a request is sent again while the server is busy, failing or away."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """How long an answer may take."""


class ScorerServer(ScoreServer):
    """A scorer of a phf-ray server (`/v1/scores`). The lower score is better."""

    name: str
    """The scorer's name on the server."""
    prompts: bool = False
    """Whether it is shown the instruction too, as a reward model must be."""


class RewardServer(ScoreServer):
    """A reward model behind OpenRLHF's `/get_reward`. The higher reward is better."""

    text: str | None = None
    """Whole text that is judged, with places {instruction} and {answer}. null: the answer, with its instruction beside
    it, which a phf-ray server puts into the words of the model."""

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.text is not None and ANSWER_PLACE not in self.text:
            raise ValueError(f"text {self.text!r:.80} has no place {ANSWER_PLACE}, so all answers would look alike")
        return self


def _is_served(value: Any) -> str:
    named = isinstance(value, dict) and "url" in value
    return "<served>" if named or isinstance(value, ScoreServer) else "<here>"


ScorerChoice = Annotated[
    Annotated[ScorerServer, Tag("<served>")] | Annotated[dict[str, Any], Tag("<here>")], Discriminator(_is_served)
]
RewardChoice = Annotated[
    Annotated[RewardServer, Tag("<served>")] | Annotated[str, Tag("<here>")],
    Discriminator(lambda value: "<here>" if isinstance(value, str) else "<served>"),
]
