"""Arms of an evaluation: models on servers, each sampled with one control token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol
from urllib.parse import quote

from pydantic import ValidationError

from phf_ray.checkpoint import CheckpointInfo, ControlChoice
from phf_ray.config import Scenario
from phf_ray.errors import ConfigError, ServiceError
from phf_ray.evaluation.report.records import KLInfo, RedTeamInfo, TaskResult
from phf_ray.http.client import Client
from phf_ray.http.openai_client import OpenAIClient
from phf_ray.storage.hashing import digest

CHECK_PATIENCE_S = 10.0
"""Seconds that a server may keep the job waiting before the first sample."""


class Asks(Protocol):
    """Anything that answers like a `Client`, such as a model in this process."""

    def get(self, path: str) -> dict[str, Any]: ...

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Arm:
    """A model on a server, and the control token that it is sampled with."""

    name: str
    url: str
    """URL of the server, without /v1."""
    model: str
    """Name of the model on the server."""
    control: ControlChoice | None = None
    """None: not sent, so the server's default applies."""
    key: str | None = field(default=None, repr=False)
    api: Literal["completions", "chat"] = "completions"
    """Whether it is asked to go on with texts, or for answers."""
    source: str = ""
    """The directory or URL that the user gave; for the report."""
    fingerprint: str = ""
    """Hash of the model's files, or of its server's description; samples of another model are never resumed."""
    knows_vllms_fields: bool = False
    """Whether the server accepts `min_tokens` and `top_k`, and may limit sampling unless told otherwise."""
    checkpoint: CheckpointInfo | None = None
    loss: tuple[tuple[int, float], ...] = ()
    """Training loss by tokens seen, for the report."""
    kl: KLInfo | None = None
    """For the report, like the next two fields."""
    capabilities: tuple[TaskResult, ...] = ()
    red_team: RedTeamInfo | None = None
    client: Asks | None = field(default=None, repr=False)
    """A model in this process, to use instead of the URL."""


def client_of(arm: Arm, *, patience_s: float = 60.0) -> Asks:
    """Return what answers for the arm: a model in this process, our own server, or a server that the user named."""
    if arm.client is not None:
        return arm.client
    kind = OpenAIClient if arm.source.startswith(("http://", "https://")) else Client
    return kind(arm.url, key=arm.key, patience_s=patience_s)


@dataclass(frozen=True, slots=True)
class ScoresServer:
    url: str
    scorer: str
    """Name of the scorer on the server, such as pep8."""
    key: str | None = field(default=None, repr=False)


def check_arm(arm: Arm) -> dict[str, Any]:
    """Return the server's card of the model. Raises if the server is down, refuses the key or lacks the model."""
    client = client_of(arm, patience_s=CHECK_PATIENCE_S)
    cards = {str(card.get("id")): dict(card) for card in client.get("/v1/models").get("data", [])}
    if arm.model not in cards:
        raise ConfigError(f"{arm.url} serves no model {arm.model!r}; it serves {', '.join(sorted(cards)) or 'none'}")
    card = cards[arm.model]
    if card.get("owned_by") == "phf-ray" and card.get("max_model_len") is None:
        # The list of models does not wait for a model that is still loading; the model's own URL does.
        card = dict(client.get(f"/v1/models/{quote(arm.model, safe='')}"))
    return card


_VOLATILE = ("created", "permission", "chat")
"""Fields of a card that change with every start of the server or every answer; and the template, for chats alone."""


def described(arm: Arm, card: Mapping[str, Any]) -> Arm:
    """Return the arm, completed from the server's card of the model if the model's files are not at hand.

    If the server gives no fingerprint of the weights, the fingerprint is a hash of the address and the rest of the
    card.
    """
    checkpoint, control = arm.checkpoint, arm.control
    if checkpoint is None and card.get("owned_by") == "phf-ray" and card.get("checkpoint") is not None:
        try:
            checkpoint = CheckpointInfo.model_validate(card["checkpoint"])
        except ValidationError as error:
            raise ServiceError(
                f"{arm.url} describes {arm.model} in a way that this version does not know: {error}; run the same "
                "version on both sides"
            ) from None
        if checkpoint.control is not None:
            control = control or "good"
    told_of_chats = card.get("chat")
    chat: Mapping[str, Any] = told_of_chats if arm.api == "chat" and isinstance(told_of_chats, Mapping) else {}
    if chat.get("reads_control"):
        control = control or "good"
    told = {key: value for key, value in card.items() if key not in _VOLATILE}
    own = arm.fingerprint or card.get("fingerprint") or digest([arm.url, arm.model, told])
    if arm.api == "chat":
        # Other words around the same messages give other answers.
        own = digest([own, arm.api, chat.get("fingerprint")])
    return replace(
        arm,
        checkpoint=checkpoint,
        control=control,
        fingerprint=str(own),
        knows_vllms_fields=knows_vllms_fields(card),
    )


def knows_vllms_fields(card: Mapping[str, Any]) -> bool:
    """Return whether the server accepts vLLM's fields.

    OpenAI's own server refuses fields that it does not know. vLLM needs them, or it applies limits from the model's
    files.
    """
    return card.get("owned_by") in ("phf-ray", "vllm")


def check_min_length(scenarios: Sequence[Scenario], arms: Sequence[Arm]) -> None:
    """Raise ConfigError if a scenario sets a minimum length that an arm's server can't enforce."""
    for scenario in scenarios:
        for arm in arms:
            if scenario.generate_kwargs.min_length and not arm.knows_vllms_fields:
                raise ConfigError(
                    f"scenario {scenario.name}: {arm.url} is not a server of jobs.serve or vLLM, so {arm.name} can't "
                    f"be asked for at least {scenario.generate_kwargs.min_length} tokens; set "
                    "generate_kwargs.min_length: 0, for all arms alike"
                )
