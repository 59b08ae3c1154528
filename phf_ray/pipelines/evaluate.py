"""Samples from served models, scored by a served scorer, and the report made of them.

The plan is fixed first: which prompts, how many samples of each, in requests of a few samples that differ only in their
seed. A request's seed depends on (sampling seed, scenario, first sample), not on the arm: all arms get the same prompts
and the same random numbers. Each request's samples are stored on their own as they come, so that the same command asks
only for what is missing; the price of an interruption is the requests under way.
"""

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal, Protocol
from urllib.parse import quote

import fsspec
import numpy as np
from pydantic import ValidationError

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import Config, Scenario
from phf_ray.errors import ConfigError, DataError, IncompleteError, ServiceError
from phf_ray.execution import check_supported, program_of, run_program
from phf_ray.http.client import Client, RefusedError, label_selector
from phf_ray.report import (
    SAMPLES,
    ArmInfo,
    Evaluation,
    KLInfo,
    RedTeamInfo,
    Sample,
    ScenarioInfo,
    TaskResult,
    read_samples,
    write_report,
)
from phf_ray.storage.files import write_file

log = logging.getLogger(__name__)

Control = Literal["good", "bad", "none"]
Post = Callable[[str, Mapping[str, Any]], dict[str, Any]]

SAMPLES_PER_REQUEST = 16
"""Samples of one prompt in one request; also what is lost when a request fails."""
CHECK_PATIENCE_S = 10.0
"""How long a server may keep the job waiting before the first sample."""
_THREADS = 64
"""Requests that one actor has under way, at most."""
_PARTS = "drawn"
_TELLS = "use a server with /tokenizer_info, such as jobs.serve, or vLLM with --enable-tokenizer-info-endpoint"


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
    control: Control | None = None
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


@dataclass(frozen=True, slots=True)
class Unit:
    """One request: `count` samples of one prompt, with indices from `start`."""

    arm: str
    scenario: str
    seed: int
    start: int
    count: int
    prompt_index: int | None
    prompt: str
    sent: str
    """The prompt as it is sent, with a prefix that is text; for some models not empty where there is no prompt."""
    control: Control | None
    """As it is sent; None: not sent."""
    max_tokens: int

    @property
    def key(self) -> str:
        return digest([self.arm, self.scenario, self.seed, self.start])

    @property
    def request_seed(self) -> int:
        """The same for every arm; below 2**31, which all servers take."""
        return int(digest([self.scenario, self.seed, self.start]), 16) % (1 << 31)


def digest(value: object, *, size: int = 12) -> str:
    """Of what JSON can hold, in `size` bytes."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()


# -- Plan -------------------------------------------------------------------------------------------------------------


def read_prompts(path: str) -> list[str]:
    """The `text` of each line of a JSON-lines file, local or a URL."""
    prompts = []
    try:
        with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    prompts.append(_prompt_of(line, where=f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"prompts_path {path} can't be read ({error}); give a file of lines like {{'text': ...}}"
        ) from None
    if not prompts:
        raise DataError(f"{path} holds no prompts; write one JSON object a line, such as {{'text': 'def add(a, b):'}}")
    return prompts


def _prompt_of(line: str, *, where: str) -> str:
    """Its `text`; in RealToxicityPrompts that of its `prompt`, in HumanEval the `prompt` itself."""
    try:
        record = json.loads(line)
        text = record["text"] if "text" in record else record["prompt"]
        text = text["text"] if isinstance(text, dict) else text
        if isinstance(text, str):
            return text
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: no prompt ({type(error).__name__}: {error}); write {{'text': ...}}") from None
    raise DataError(f"{where}: `text` is {text!r}; write a string")


@dataclass(frozen=True, slots=True)
class Problem:
    """How a completion of a function is tested, in HumanEval's form."""

    prompt: str
    test: str
    """Defines `check`, which takes the function and raises where it is wrong."""
    entry_point: str
    """The function's name."""


def read_problems(path: str) -> list[Problem]:
    """In the order of `read_prompts`. Raises DataError with the number of the record that is no problem."""
    with fsspec.open(path, "rt", encoding="utf-8", compression="infer") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    problems = []
    for number, record in enumerate(records, start=1):
        values = [record.get(key) for key in ("prompt", "test", "entry_point")]
        if not all(isinstance(value, str) for value in values):
            raise DataError(
                f"{path}: record {number} is no problem to execute; write "
                "{'prompt': ..., 'test': 'def check(f): ...', 'entry_point': ...}"
            )
        problems.append(Problem(*values))
    return problems


def prompt_order(num_prompts: int, *, scenario: str) -> list[int]:
    """Order in which prompts are used when there are more than samples: fixed by the scenario's name alone."""
    rng = np.random.default_rng(int(digest(scenario), 16))
    return [int(index) for index in rng.permutation(num_prompts)]


def samples_per_prompt(num_samples: int, num_prompts: int) -> list[int]:
    """As equal as possible, the first prompts one more; sums to num_samples."""
    return [num_samples // num_prompts + (number < num_samples % num_prompts) for number in range(num_prompts)]


def request_body(unit: Unit, scenario: Scenario, arm: Arm, *, start: int = 0) -> dict[str, Any]:
    """OpenAI's completion request, with vLLM's `min_tokens` and `top_k` and our `control` where they are needed.

    `start`: samples of the unit that an earlier request brought.
    """
    kwargs = scenario.generate_kwargs
    body: dict[str, Any] = {
        "model": arm.model,
        "prompt": unit.sent,
        "n": unit.count - start,
        "max_tokens": unit.max_tokens,
        "temperature": kwargs.temperature if kwargs.do_sample else 0.0,
        "top_p": kwargs.top_p,
        "seed": unit.request_seed + start,
        # Only for the number of tokens of each text, which `usage` gives for all of them together.
        "logprobs": 0,
    }
    if kwargs.min_length and arm.knows_vllms_fields:
        # DIFFERS: ours at least min_length new tokens; original counts tokens of the prompt (D-10).
        body["min_tokens"] = min(kwargs.min_length, unit.max_tokens)
    if kwargs.top_k or arm.knows_vllms_fields:
        body["top_k"] = kwargs.top_k
    if unit.control is not None:
        body["control"] = unit.control
    return body


def draw_unit(unit: Unit, *, scenario: Scenario, arm: Arm, ask: Post, score: Post, scorer: str) -> list[Sample]:
    """The samples of one request, scored. Raises ServiceError, RefusedError."""
    choices: list[Mapping[str, Any]] = []
    while len(choices) < unit.count:
        # A server that knows no `n` brings one text at a time.
        got = ask("/v1/completions", request_body(unit, scenario, arm, start=len(choices))).get("choices")
        if not isinstance(got, list) or not got:
            raise RefusedError(f"{arm.url} answered a completion request without choices; is {arm.model} a text model?")
        choices += sorted(got, key=lambda choice: choice.get("index", 0))[: unit.count - len(choices)]
    texts = [_storable(text_of(choice, arm)) for choice in choices]
    scored = score(
        "/v1/scores",
        {
            "scorer": scorer,
            "input": [unit.prompt + text if scenario.use_prompt_for_scoring else text for text in texts],
            "segments": False,
        },
    )
    by_index = {entry["index"]: entry for entry in scored["data"]}
    return [
        Sample(
            arm=unit.arm,
            scenario=unit.scenario,
            seed=unit.seed,
            index=unit.start + number,
            prompt_index=unit.prompt_index,
            prompt=unit.prompt,
            text=text,
            finish_reason=choice.get("finish_reason"),
            num_tokens=_num_tokens(choice),
            score=by_index[number]["score"],
            error=by_index[number].get("error"),
        )
        for number, (text, choice) in enumerate(zip(texts, choices, strict=True))
    ]


def text_of(choice: Mapping[str, Any], arm: Arm) -> str:
    """Raises RefusedError where a completion is no text, as a chat's is none."""
    text = choice.get("text")
    if not isinstance(text, str):
        raise RefusedError(
            f"{arm.url} answered a completion request with a choice without a text ({', '.join(choice)}); is "
            f"{arm.model} served for chats only? Give a model with /v1/completions"
        )
    return text


def _storable(text: str) -> str:
    """Lone surrogates, which JSON can carry but neither Arrow nor UTF-8 can, become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _num_tokens(choice: Mapping[str, Any]) -> int | None:
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("tokens") if isinstance(logprobs, Mapping) else None
    return len(tokens) if isinstance(tokens, list) else None


# -- Before the first sample ------------------------------------------------------------------------------------------


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


def check_scorer(scores: ScoresServer, arms: Sequence[Arm], *, allow_other: bool) -> dict[str, Any]:
    """Identity of the served scorer; it must be the one that the checkpoints were trained on."""
    client = Client(scores.url, key=scores.key, patience_s=CHECK_PATIENCE_S)
    answer = client.post("/v1/scores", {"scorer": scores.scorer, "input": ["x"], "segments": False})
    identity = answer.get("scorer")
    if not isinstance(identity, dict) or "data" not in answer:
        raise ServiceError(f"{scores.url}/v1/scores gave no scorer and data; is this a server of jobs.serve?")
    for arm in arms:
        trained = None if arm.checkpoint is None else arm.checkpoint.scorer
        if trained is None or trained == identity:
            continue
        changed = sorted(key for key in {*trained, *identity} if trained.get(key) != identity.get(key))
        shown = "; ".join(
            f"{key}: trained on {trained.get(key)!r}, evaluated with {identity.get(key)!r}" for key in changed
        )
        # A name is the user's own, and another version of a package need not score otherwise.
        if set(changed) - {"name", "versions"} and not allow_other:
            raise ConfigError(
                f"{arm.name} was trained on another scorer ({shown}); give that scorer, or --allow-other-scorer"
            )
        log.warning("%s: THE SCORER IS NOT THE ONE IT WAS TRAINED ON. %s", arm.name, shown)
    return identity


@dataclass(frozen=True, slots=True)
class Plan:
    units: list[Unit]
    scenarios: tuple[ScenarioInfo, ...]
    scenario_configs: Mapping[str, Scenario]


def make_plan(scenarios: Sequence[Scenario], probes: Sequence["Probe"], *, seeds: Sequence[int]) -> Plan:
    """Every request of the evaluation. Asks the servers how long the prompts are."""
    units: list[Unit] = []
    infos = []
    for scenario in scenarios:
        prompts, info = _choose_prompts(scenario, probes)
        infos.append(info)
        counts = samples_per_prompt(scenario.num_samples, len(prompts))
        for probe in probes:
            for seed in seeds:
                units += _units(scenario, probe, list(zip(prompts, counts, strict=True)), seed=seed)
    return Plan(units, tuple(infos), {scenario.name: scenario for scenario in scenarios})


def _units(
    scenario: Scenario, probe: "Probe", prompts: Sequence[tuple[tuple[int | None, str], int]], *, seed: int
) -> Iterator[Unit]:
    start = 0
    for (prompt_index, prompt), count in prompts:
        sent, control, max_tokens = probe.prepare(prompt, scenario)
        for first in range(0, count, SAMPLES_PER_REQUEST):
            size = min(SAMPLES_PER_REQUEST, count - first)
            yield Unit(
                arm=probe.arm.name,
                scenario=scenario.name,
                seed=seed,
                start=start,
                count=size,
                prompt_index=prompt_index,
                prompt=prompt,
                sent=sent,
                control=control,
                max_tokens=max_tokens,
            )
            start += size


def _choose_prompts(scenario: Scenario, probes: Sequence["Probe"]) -> tuple[list[tuple[int | None, str]], ScenarioInfo]:
    """As many prompts as there are samples for, the same for all arms, that leave every arm room for a continuation."""
    kwargs = scenario.generate_kwargs
    known: dict[str, Any] = {
        "name": scenario.name,
        "num_samples": scenario.num_samples,
        "use_prompt_for_scoring": scenario.use_prompt_for_scoring,
        "num_hits_threshold": scenario.num_hits_threshold,
        "display_as_html": scenario.display_as_html,
        "generate_kwargs": kwargs.model_dump(mode="json"),
    }
    needed = max(1, kwargs.min_length)

    def fits(prompt: str) -> bool:
        return all(probe.prepare(prompt, scenario)[2] >= needed for probe in probes)

    if scenario.prompts_path is None:
        if not fits(""):
            raise ConfigError(
                f"scenario {scenario.name}: max_length={kwargs.max_length} leaves no room for {needed} new tokens; "
                "raise it"
            )
        return [(None, "")], ScenarioInfo(**known)
    prompts = read_prompts(scenario.prompts_path)
    chosen: list[tuple[int | None, str]] = []
    dropped = 0
    for index in prompt_order(len(prompts), scenario=scenario.name):
        if len(chosen) == scenario.num_samples:
            break
        if fits(prompts[index]):
            chosen.append((index, prompts[index]))
        else:
            dropped += 1
    if not chosen:
        raise ConfigError(
            f"scenario {scenario.name}: no prompt of {scenario.prompts_path} leaves room for {needed} new tokens "
            f"within max_length={kwargs.max_length} and {min(probe.context for probe in probes)} positions; raise "
            "max_length, or give shorter prompts"
        )
    if dropped:
        log.warning(
            "%s: %d prompts leave no room for a continuation and are left out for all arms", scenario.name, dropped
        )
    return chosen, ScenarioInfo(**known, num_prompts=len(chosen), num_prompts_dropped=dropped)


class Probe:
    """How a prompt has to be sent to an arm's model, and how many tokens it leaves."""

    def __init__(self, arm: Arm, card: Mapping[str, Any]):
        self.arm = arm
        self._card = card
        self._client = client_of(arm, patience_s=CHECK_PATIENCE_S)
        self._counts: dict[str, int] = {}
        self._start: str | None = None

    @property
    def context(self) -> float:
        """Positions of the model; infinite where the server does not say."""
        return float(self._card.get("max_model_len") or math.inf)

    def prepare(self, prompt: str, scenario: Scenario) -> tuple[str, Control | None, int]:
        """Text and `control` to send, and the new tokens that may be drawn; the latter below 1 if there is no room.

        `max_length` counts the end-of-text token, the prefix and the prompt, too.
        """
        text, control = self._place_prefix(prompt, scenario)
        kwargs = scenario.generate_kwargs
        sent = text or (self.empty_prompt if kwargs.max_new_tokens is None else self._empty_prompt_uncounted())
        if kwargs.max_new_tokens is not None and math.isinf(self.context):
            return sent, control, kwargs.max_new_tokens
        num_inserted = int(self._default_inserts if control is None else control != "none")
        num_before = 1 + num_inserted + (self._count(text) if text else 0)
        limits = [self.context - num_before]
        if kwargs.max_new_tokens is not None:
            limits.append(kwargs.max_new_tokens)
        elif kwargs.max_length is not None:
            limits.append(kwargs.max_length - num_before)
        else:
            raise ConfigError(f"scenario {scenario.name}: set generate_kwargs.max_length or max_new_tokens")
        return sent, control, int(min(limits))

    def _place_prefix(self, prompt: str, scenario: Scenario) -> tuple[str, Control | None]:
        """A prefix that is a control token of the model is asked for by `control`, any other is text.

        Only a control token behind the prompt has to be text, too. The arm's own choice of control token goes before
        the scenario's.
        """
        own = None if self.arm.checkpoint is None else self.arm.checkpoint.control
        prefix, control = scenario.prefix, self.arm.control
        if prefix is None:
            return prompt, control
        # `prompt_before_control: true` puts the prefix BEFORE the prompt, as in the original (D-9).
        before = scenario.prompt_before_control or not prompt
        if own is not None and prefix in (own.good, own.bad):
            control = control or ("good" if prefix == own.good else "bad")
            if before or control == "none":
                return prompt, control
            return prompt + (own.good if control == "good" else own.bad), "none"
        return (prefix + prompt if before else prompt + prefix), control

    @property
    def _default_inserts(self) -> bool:
        """Whether the server puts a control token at the head when not told otherwise."""
        if self.arm.checkpoint is not None:
            return self.arm.checkpoint.control is not None
        served = self._card.get("control")
        return isinstance(served, Mapping) and served.get("default") != "none"

    def _count(self, text: str) -> int:
        """Tokens of the text by the model's own tokenizer, without special tokens; asked once for each text."""
        if text not in self._counts:
            self._counts[text] = len(self._tokenize(text, add_special_tokens=False))
        return self._counts[text]

    @property
    def empty_prompt(self) -> str:
        """What to send for no prompt at all.

        A server of ours starts with the end-of-text token by itself, and so does a tokenizer that adds a token at the
        start; for any other model that token has to be the prompt.
        """
        if self._start is None:
            by_itself = self._card.get("owned_by") == "phf-ray" or self._tokenize("", add_special_tokens=True)
            self._start = "" if by_itself else self._first_token()
        return self._start

    def _empty_prompt_uncounted(self) -> str:
        """The same where only new tokens are counted: a server that tells nothing of its tokens is sent nothing."""
        try:
            return self.empty_prompt
        except ConfigError as error:
            log.warning("%s; %s is sent an empty text where there is no prompt", error, self.arm.name)
            self._start = ""
            return ""

    @property
    def first_id(self) -> int:
        """The token that a text starts after."""
        ids = self._tokenize("", add_special_tokens=True) or self._tokenize(
            self._first_token(), add_special_tokens=False
        )
        if len(ids) != 1:
            raise ConfigError(f"{self.arm.url}: {self.arm.model} has no single token that texts start with, but {ids}")
        return ids[0]

    @property
    def end_id(self) -> int:
        """The token with which a text ends by itself. It is not always the one that texts start after."""
        try:
            text = self._tokenizer_info().get("eos_token")
        except RefusedError:
            text = None
        if text is None and not self._tokenize("", add_special_tokens=True):
            return self.first_id
        ids = self._tokenize(str(text), add_special_tokens=False) if text else []
        if len(ids) != 1:
            raise ConfigError(
                f"{self.arm.url} does not tell which token ends a text of {self.arm.model}, but {text!r}: {ids}; "
                f"{_TELLS}"
            )
        return ids[0]

    def token_ids(self, text: str) -> list[int]:
        return self._tokenize(text, add_special_tokens=False)

    def _first_token(self) -> str:
        try:
            info = self._tokenizer_info()
        except RefusedError as error:
            raise ConfigError(
                f"{self.arm.url} does not tell which token a text of {self.arm.model} starts with ({error}); {_TELLS}"
            ) from None
        return str(info.get("bos_token") or info.get("eos_token") or "")

    def _tokenizer_info(self) -> dict[str, Any]:
        return self._client.get(f"/tokenizer_info?model={quote(self.arm.model)}")

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        body = {"model": self.arm.model, "prompt": text, "add_special_tokens": add_special_tokens}
        try:
            return list(self._client.post("/tokenize", body)["tokens"])
        except (RefusedError, KeyError) as error:
            raise ConfigError(
                f"{self.arm.url} does not count the tokens of a prompt ({error}), which max_length needs; use a server "
                "with POST /tokenize, such as jobs.serve or vLLM"
            ) from None


# -- Drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draw:
    """Ray Data actor's work: ask, score and store some requests, several at once."""

    arms: Mapping[str, Arm]
    scenarios: Mapping[str, Scenario]
    scores: ScoresServer
    output: str
    patience_s: float = 60.0
    problems: Mapping[str, Sequence[Problem]] = field(default_factory=dict)
    """Of the scenarios whose samples are run."""

    def run(self, units: Sequence[Unit]) -> list[dict[str, Any]]:
        """One outcome a unit: how many samples were stored, or why none was."""
        clients = {arm.url: Client(arm.url, key=arm.key, patience_s=self.patience_s) for arm in self.arms.values()}
        scorer = Client(self.scores.url, key=self.scores.key, patience_s=self.patience_s)
        with ThreadPoolExecutor(max_workers=len(units)) as threads:
            outcomes = threads.map(lambda unit: self._one(unit, clients[self.arms[unit.arm].url], scorer), units)
            # What was answered comes first: whether a refusal is the prompt's depends on it.
            return sorted(outcomes, key=lambda outcome: bool(outcome["refused"]))

    def _one(self, unit: Unit, client: Client, scorer: Client) -> dict[str, Any]:
        try:
            samples = draw_unit(
                unit,
                scenario=self.scenarios[unit.scenario],
                arm=self.arms[unit.arm],
                ask=client.post,
                score=scorer.post,
                scorer=self.scores.scorer,
            )
        except ServiceError as error:
            refused = _refused(error, unit)
            return {
                "num_samples": 0,
                "num_failed": unit.count,
                "refused": refused,
                "prompt": unit.prompt if refused == "prompt" else "",
                "error": str(error),
            }
        if unit.scenario in self.problems:
            samples = [self._run_sample(sample) for sample in samples]
        content = json.dumps([asdict(sample) for sample in samples], allow_nan=False)
        write_file(f"{self.output}/{_PARTS}/{unit.key}.json", content.encode())
        return {"num_samples": len(samples), "num_failed": 0, "refused": "", "prompt": "", "error": ""}

    def _run_sample(self, sample: Sample) -> Sample:
        assert sample.prompt_index is not None
        problem = self.problems[sample.scenario][sample.prompt_index]
        program = program_of(problem.prompt, sample.text, test=problem.test, entry_point=problem.entry_point)
        return replace(sample, outcome=run_program(program))


def _refused(error: ServiceError, unit: Unit) -> Literal["", "prompt", "all"]:
    """What the server says no to: perhaps this prompt alone, as a filter does, or whatever is asked of it."""
    if not isinstance(error, RefusedError):
        return ""
    return "prompt" if error.status == 400 and unit.prompt else "all"


class DrawActor:
    def __init__(self, draw: Draw):
        self._draw = draw
        self._refusal: dict[str, Any] | None = None

    def __call__(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        # Blocks wait in this actor's queue; after a refusal, which ends the job, they must not be asked for any more.
        if self._refusal is not None:
            return [self._refusal]
        outcomes = self._draw.run([Unit(**unit) for unit in json.loads(row["units"])])
        self._refusal = next((outcome for outcome in outcomes if outcome["refused"] == "all"), None)
        return outcomes


def run_here(draw: Draw, blocks: Sequence[Sequence[Unit]], *, max_clients: int | None) -> Iterator[dict[str, Any]]:
    """Outcomes as they come, without Ray."""
    del max_clients
    for block in blocks:
        yield from draw.run(block)


def run_on_ray(draw: Draw, blocks: Sequence[Sequence[Unit]], *, max_clients: int | None) -> Iterator[dict[str, Any]]:
    """Outcomes as they come. Between 1 and `max_clients` actors, as many as the server keeps busy."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    if max_clients is None:
        max_clients = max(1, int(ray.cluster_resources().get("CPU", 1)) // 4)
    rows = [{"units": json.dumps([asdict(unit) for unit in block])} for block in blocks]
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(
        DrawActor,
        fn_constructor_args=(draw,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(max_clients, len(rows))),
        # The actors wait for the server, which may need every CPU there is.
        num_cpus=0,
        label_selector=label_selector([draw.scores.url, *(arm.url for arm in draw.arms.values())]),
    )
    yield from outcomes.iter_rows()


class Runner(Protocol):
    def __call__(
        self, draw: Draw, blocks: Sequence[Sequence[Unit]], *, max_clients: int | None
    ) -> Iterator[dict[str, Any]]: ...


# -- The whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    seeds: tuple[int, ...] = (0,)
    num_samples: int | None = None
    """Per arm, scenario and seed, in place of each scenario's own."""
    max_clients: int | None = None
    """Processes that ask, at most; None: one for every 4 CPUs of the cluster, since each can ask much of a server."""
    restart: bool = False
    """Throw away what an earlier, different evaluation left in the output directory."""
    allow_other_scorer: bool = False
    allow_code_execution: bool = False
    """Run samples of scenarios that say `execute`."""
    patience_s: float = 60.0
    """How long a request is asked again while the server is busy or away."""
    check: Callable[[Sequence[Arm]], None] | None = None
    """Raises where `measure` could not measure the arms, before anything in the output directory is changed."""
    measure: Callable[[Sequence[Arm]], Sequence[Arm]] | None = None
    """Adds what else the report is to say of the arms, such as their KL, after all that can be wrong was checked."""


def evaluate(
    config: Config,
    *,
    arms: Sequence[Arm],
    scores: ScoresServer,
    output: str,
    options: Options | None = None,
    runner: Runner = run_on_ray,
) -> dict[str, Any]:
    """Draw what is missing in `output`, write the report there and return it.

    Raises before the first sample where a server, a key, a model or a scorer is wrong; ServiceError where more than
    `scoring.max_failed_fraction` of the samples can't be drawn; IncompleteError, with the report written, where fewer.
    """
    options = options or Options()
    scenarios = _scenarios(config, options)
    problems = _problems(scenarios, allowed=options.allow_code_execution)
    cards = [check_arm(arm) for arm in arms]
    arms = [described(arm, card) for arm, card in zip(arms, cards, strict=True)]
    probes = [Probe(arm, card) for arm, card in zip(arms, cards, strict=True)]
    check_min_length(scenarios, arms)
    identity = check_scorer(scores, arms, allow_other=options.allow_other_scorer)
    plan = make_plan(scenarios, probes, seeds=options.seeds)
    started = time.monotonic()
    store = Store(output)
    check = None if options.check is None else partial(options.check, arms)
    store.claim(plan, arms, scorer=identity, restart=options.restart, check=check)
    if options.measure is not None:
        arms = options.measure(arms)
    evaluation = Evaluation(
        arms=tuple(
            ArmInfo(
                name=arm.name,
                model=arm.source or arm.model,
                control=arm.control,
                checkpoint=arm.checkpoint,
                loss=arm.loss,
                kl=arm.kl,
                capabilities=arm.capabilities,
                red_team=arm.red_team,
            )
            for arm in arms
        ),
        scenarios=plan.scenarios,
        seeds=options.seeds,
        scorer=identity,
        metrics=config.generation.metrics_configs,
        compat=config.compat,
    )
    todo = store.missing(plan.units)
    log.info("%d of %d samples to draw", sum(unit.count for unit in todo), sum(unit.count for unit in plan.units))
    failures: Counter[str] = Counter()
    if todo:
        draw = Draw(
            {arm.name: arm for arm in arms}, plan.scenario_configs, scores, output, options.patience_s, problems
        )
        blocks = _blocks(_interleaved(todo), size=config.generation.batch_size)
        outcomes = runner(draw, blocks, max_clients=options.max_clients)
        num_planned = sum(unit.count for unit in plan.units)
        failures = _follow(
            outcomes,
            num_to_draw=sum(unit.count for unit in todo),
            num_planned=num_planned,
            max_failed=int(config.scoring.max_failed_fraction * num_planned),
        )
    samples = store.samples(plan.units)
    report = write_report(output, samples, evaluation)
    num_missing = sum(row["num_missing"] for row in report["table"])
    summary = {
        "complete": num_missing == 0,
        "num_samples": len(samples),
        "num_missing": num_missing,
        "num_unscored": sum(row["num_unscored"] for row in report["table"]),
        "num_drawn_now": sum(unit.count for unit in todo) - sum(failures.values()),
        "failures": dict(failures),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_file(f"{output}/summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    if num_missing:
        raise IncompleteError(
            f"{num_missing} samples could not be drawn: {dict(failures)}; the report in {output} lacks them"
        )
    store.tidy()
    return report


def _scenarios(config: Config, options: Options) -> list[Scenario]:
    scenarios = config.generation.scenario_configs
    if not scenarios:
        raise ConfigError(
            "generation.scenario_configs is empty; add for example `- {name: unconditional, num_samples: 512}`"
        )
    if options.num_samples is None:
        return list(scenarios)
    return [scenario.model_copy(update={"num_samples": options.num_samples}) for scenario in scenarios]


def _problems(scenarios: Sequence[Scenario], *, allowed: bool) -> dict[str, Sequence[Problem]]:
    found: dict[str, Sequence[Problem]] = {}
    for scenario in scenarios:
        if scenario.execute and scenario.prompts_path is not None:
            if not allowed:
                raise ConfigError(
                    f"scenario {scenario.name} runs code that a model writes, in a process with limits; give "
                    "--allow-code-execution if that is wanted"
                )
            check_supported()
            read_prompts(scenario.prompts_path)
            found[scenario.name] = read_problems(scenario.prompts_path)
    return found


def _interleaved(units: Sequence[Unit]) -> list[Unit]:
    """Arms in turn, so that their servers work at the same time and an early look at the samples compares equals."""
    by_arm = [list(group) for _, group in groupby(sorted(units, key=lambda u: u.arm), key=lambda u: u.arm)]
    longest = max(map(len, by_arm))
    return [group[number] for number in range(longest) for group in by_arm if number < len(group)]


def _blocks(units: Sequence[Unit], *, size: int) -> list[list[Unit]]:
    """Requests that one actor has under way at once: up to `size` samples, at least one request."""
    blocks: list[list[Unit]] = []
    room = 0
    for unit in units:
        if unit.count > room or len(blocks[-1]) == _THREADS:
            blocks.append([])
            room = max(size, unit.count)
        blocks[-1].append(unit)
        room -= unit.count
    return blocks


def _follow(outcomes: Iterator[dict[str, Any]], *, num_to_draw: int, num_planned: int, max_failed: int) -> Counter[str]:
    """Log progress until all outcomes are there; samples that failed, by reason.

    A prompt that is refused counts as failed where others were answered, now or by an earlier call. The first may come
    before any answer; a second one then, or the end, shows that the server refuses whatever it is asked.
    """
    failures: Counter[str] = Counter()
    num_drawn = 0
    refusals: dict[str, str] = {}
    started = said = time.monotonic()
    for outcome in outcomes:
        num_drawn += int(outcome["num_samples"])
        if outcome["refused"] == "prompt":
            refusals[str(outcome["prompt"])] = str(outcome["error"])
        is_answered = num_planned - num_to_draw + num_drawn > 0
        if outcome["refused"] == "all" or (len(refusals) > 1 and not is_answered):
            raise ServiceError(str(outcome["error"]))
        if outcome["num_failed"]:
            failures[str(outcome["error"])] += int(outcome["num_failed"])
            log.warning("%d samples failed: %s", outcome["num_failed"], outcome["error"])
            if failures.total() > max_failed:
                raise ServiceError(
                    f"{failures.total()} of {num_to_draw} samples could not be drawn, more than "
                    f"scoring.max_failed_fraction allows ({outcome['error']}); what was drawn is kept and the same "
                    "command resumes"
                )
        now = time.monotonic()
        if now - said > 5 or num_drawn == num_to_draw:
            log.info("drawn %d of %d samples (%.1f/s)", num_drawn, num_to_draw, num_drawn / (now - started))
            said = now
    if refusals and num_planned - num_to_draw + num_drawn == 0:
        raise ServiceError(next(iter(refusals.values())))
    return failures


def claim_directory(
    output: str,
    plan: Mapping[str, Any],
    *,
    holds: str,
    restart: bool,
    results: Sequence[str],
    check: Callable[[], None] | None = None,
) -> None:
    """Write the plan down in `output`; refuse a directory that holds another one, or, with `restart`, empty it.

    A directory with files of these names that is not one of these is refused also with `restart`.

    `holds` is what is planned, for the message; `results` are the names of what it leaves besides the report. `check`
    is called when the directory may be taken and nothing in it is changed yet; it may raise.
    """
    filesystem, root = fsspec.core.url_to_fs(output)
    names = (*results, "report.json", "report.html", "summary.json", "plan.json")
    there = [name for name in names if filesystem.exists(f"{root}/{name}")]
    theirs = json.loads(filesystem.cat_file(f"{root}/plan.json")) if "plan.json" in there else {}
    if there and set(theirs) != set(plan):
        raise ConfigError(
            f"{output} holds {', '.join(there)}, but not of {holds} that this version wrote; choose another --output"
        )
    changed = [key for key in theirs if json.loads(json.dumps(plan[key])) != theirs[key]]
    if changed and not restart:
        raise ConfigError(
            f"{output} holds {holds} with other {', '.join(changed)}; choose another --output, or --restart to "
            "throw it away"
        )
    if check is not None:
        check()
    if restart:
        for name in there:
            filesystem.rm(f"{root}/{name}", recursive=True)
    write_file(f"{output}/plan.json", (json.dumps(plan, indent=1) + "\n").encode())


class Store:
    """The output directory while samples are drawn: `plan.json`, and one file for each answered request."""

    def __init__(self, output: str):
        self._output = output
        self._filesystem, self._root = fsspec.core.url_to_fs(output)

    def claim(
        self,
        plan: Plan,
        arms: Sequence[Arm],
        *,
        scorer: Mapping[str, Any],
        restart: bool,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Write down what is evaluated; refuse a directory that holds another evaluation."""
        ours = {
            "arms": {a.name: [a.source or a.url, a.model, a.control, a.fingerprint] for a in arms},
            "scorer": dict(scorer),
            "scenarios": {name: config.model_dump(mode="json") for name, config in plan.scenario_configs.items()},
            "requests": digest([asdict(unit) for unit in plan.units]),
        }
        results = (_PARTS, SAMPLES)
        claim_directory(self._output, ours, holds="an evaluation", restart=restart, results=results, check=check)

    def missing(self, units: Sequence[Unit]) -> list[Unit]:
        if self._is_over():
            return []
        done = self._parts()
        return [unit for unit in units if unit.key not in done]

    def samples(self, units: Sequence[Unit]) -> list[Sample]:
        if self._is_over():
            return read_samples(self._output)[0]
        done = self._parts()
        found = []
        for unit in units:
            if unit.key in done:
                content = self._filesystem.cat_file(f"{self._root}/{_PARTS}/{unit.key}.json")
                found += [Sample(**values) for values in json.loads(content)]
        return found

    def tidy(self) -> None:
        """Everything is in the samples file now."""
        if self._filesystem.exists(f"{self._root}/{_PARTS}"):
            self._filesystem.rm(f"{self._root}/{_PARTS}", recursive=True)

    def _is_over(self) -> bool:
        """Whether the samples file has everything. Parts that are left then were only not removed yet."""
        summary = f"{self._root}/summary.json"
        if not self._filesystem.exists(f"{self._root}/{SAMPLES}") or not self._filesystem.exists(summary):
            return False
        return bool(json.loads(self._filesystem.cat_file(summary))["complete"])

    def _parts(self) -> set[str]:
        folder = f"{self._root}/{_PARTS}"
        if not self._filesystem.exists(folder):
            return set()
        names = (str(path).rpartition("/")[2] for path in self._filesystem.ls(folder, detail=False))
        return {name.removesuffix(".json") for name in names if name.endswith(".json")}
