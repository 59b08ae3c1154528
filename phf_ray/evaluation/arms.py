"""What is evaluated: models on servers, each asked with one control token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import quote

from pydantic import ValidationError

from phf_ray.checkpoint import CheckpointInfo, ControlChoice
from phf_ray.config import Scenario
from phf_ray.errors import ConfigError, ServiceError
from phf_ray.evaluation.report.records import KLInfo, RedTeamInfo, TaskResult
from phf_ray.http.client import Client
from phf_ray.storage.hashing import digest

CHECK_PATIENCE_S = 10.0
"""How long a server may keep the job waiting before the first sample."""


class Asks(Protocol):
    """What a `Client` does; also a model in this process."""

    def get(self, path: str) -> dict[str, Any]: ...

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Arm:
    """A model on a server, and the control token it is asked with."""

    name: str
    url: str
    """Of the server, without /v1."""
    model: str
    """Its name on the server."""
    control: ControlChoice | None = None
    """None: not sent, the server's default."""
    key: str | None = field(default=None, repr=False)
    source: str = ""
    """What the user called it: a directory or a URL. For the report."""
    fingerprint: str = ""
    """Hash of the model's files, or of what its server says of it: samples of another model are not resumed."""
    knows_vllms_fields: bool = False
    """Its server takes `min_tokens` and `top_k`, and may limit what is drawn where it is not told otherwise."""
    checkpoint: CheckpointInfo | None = None
    loss: tuple[tuple[int, float], ...] = ()
    """Training loss by tokens seen, for the report."""
    kl: KLInfo | None = None
    """For the report, like the next two."""
    capabilities: tuple[TaskResult, ...] = ()
    red_team: RedTeamInfo | None = None
    client: Asks | None = field(default=None, repr=False)
    """A model in this process, asked in place of the URL."""


def client_of(arm: Arm, *, patience_s: float = 60.0) -> Asks:
    return arm.client or Client(arm.url, key=arm.key, patience_s=patience_s)


@dataclass(frozen=True, slots=True)
class ScoresServer:
    url: str
    scorer: str
    """Name of the scorer on the server, such as pep8."""
    key: str | None = field(default=None, repr=False)


def check_arm(arm: Arm) -> dict[str, Any]:
    """What the server says of the model. Raises where it is down, refuses the key or does not know the model."""
    client = client_of(arm, patience_s=CHECK_PATIENCE_S)
    cards = {str(card.get("id")): dict(card) for card in client.get("/v1/models").get("data", [])}
    if arm.model not in cards:
        raise ConfigError(f"{arm.url} serves no model {arm.model!r}; it serves {', '.join(sorted(cards)) or 'none'}")
    card = cards[arm.model]
    if card.get("owned_by") == "phf-ray" and card.get("max_model_len") is None:
        # A list does not wait for a model that is being loaded.
        card = dict(client.get(f"/v1/models/{quote(arm.model, safe='')}"))
    return card


_VOLATILE = ("created", "permission")
"""Of a card: other after each start of a server, or in each answer."""


def described(arm: Arm, card: Mapping[str, Any]) -> Arm:
    """The arm with what its server says of the model where its files are not at hand.

    A server that tells no fingerprint of the weights has that of its address and the rest of the card.
    """
    checkpoint, control = arm.checkpoint, arm.control
    if checkpoint is None and card.get("owned_by") == "phf-ray" and card.get("checkpoint") is not None:
        try:
            checkpoint = CheckpointInfo.model_validate(card["checkpoint"])
        except ValidationError as error:
            raise ServiceError(
                f"{arm.url} describes {arm.model} in a way that is not known here: {error}; let both run one version"
            ) from None
        if checkpoint.control is not None:
            control = control or "good"
    told = {key: value for key, value in card.items() if key not in _VOLATILE}
    own = arm.fingerprint or card.get("fingerprint") or digest([arm.url, arm.model, told])
    return replace(
        arm,
        checkpoint=checkpoint,
        control=control,
        fingerprint=str(own),
        knows_vllms_fields=knows_vllms_fields(card),
    )


def knows_vllms_fields(card: Mapping[str, Any]) -> bool:
    """OpenAI's own server refuses what it does not know; vLLM takes over the limit that a model's files propose."""
    return card.get("owned_by") in ("phf-ray", "vllm")


def check_min_length(scenarios: Sequence[Scenario], arms: Sequence[Arm]) -> None:
    """Raises ConfigError where texts must have a length that an arm's server can't be asked for."""
    for scenario in scenarios:
        for arm in arms:
            if scenario.generate_kwargs.min_length and not arm.knows_vllms_fields:
                raise ConfigError(
                    f"scenario {scenario.name}: {arm.url} is no server of jobs.serve or vLLM, so {arm.name} can't be "
                    f"asked for at least {scenario.generate_kwargs.min_length} tokens; set generate_kwargs.min_length: "
                    "0, for all arms alike"
                )
