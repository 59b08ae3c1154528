"""Draws texts from a server that gives the log-probabilities of what it drew, and of nothing else.

OpenAI's own API is such a server. A reference is asked once: its texts are kept in one file per reference and way of
asking, request by request while they are drawn, so that an interruption costs only the requests in progress.
"""

import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import CHECK_PATIENCE_S, Arm, Asks, check_arm, client_of, knows_vllms_fields
from phf_ray.evaluation.kl.drawn import DrawnText, text_of_choice
from phf_ray.evaluation.kl.sample_file import ReferenceSamples, read_reference_samples, write_reference_samples
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer
from phf_ray.evaluation.kl.texts import REQUESTS_AT_ONCE, TEXTS_PER_REQUEST, read_kept
from phf_ray.evaluation.probe import Probe
from phf_ray.http.client import RefusedError
from phf_ray.http.keys import is_openai
from phf_ray.storage.files import open_filesystem, write_file
from phf_ray.storage.hashing import digest

log = logging.getLogger(__name__)

Api = Literal["completions", "chat"]
_PATHS: Mapping[Api, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_START = "<|endoftext|>"
"""OpenAI's completions start a text after this token."""
CHAT_PROMPT = (
    "Write the beginning of a random document from the web, whatever its kind. Answer with the document's text alone."
)
"""A chat can't start from nothing: it is asked for this unless `kl_gpt3_callback.reference_prompt` asks otherwise."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How many texts are drawn, and how."""

    num_samples: int
    max_tokens: int
    prompt: str | None = None
    """What the texts come after; None: end-of-text, or `CHAT_PROMPT` in a chat."""
    seed: int = 0


def api_of(reference: Arm) -> Api | None:
    """Return how to ask a reference for texts with log-probabilities; None if it gives those of any text (`echo`).

    Raises ConfigError if it gives none at all.
    """
    if not _is_url(reference):
        return None
    problems = []
    if not is_openai(reference.url):
        try:
            SequenceScorer(reference).check()
            return None
        except ConfigError as error:
            problems.append(str(error))
    client = client_of(reference, patience_s=CHECK_PATIENCE_S)
    for api in _PATHS:
        try:
            [text] = _ask(client, api, _body(reference, api, prompt="Hi", max_tokens=1), count=1, seed=0)
        except RefusedError as error:
            problems.append(str(error))
            continue
        if text.error is None or "no log-probabilities" not in text.error:
            log.info("KL from %s uses the log-probabilities of what it draws, by %s", reference.name, _PATHS[api])
            return api
        problems.append(f"{_PATHS[api]} gives no log-probabilities")
    raise ConfigError(
        f"{reference.url} gives no log-probabilities of {reference.model}, neither of texts that it is given nor of "
        f"those that it draws ({'; '.join(problems)}); give a server with `logprobs`, or --reference-samples FILE"
    )


def kept_samples(reference: Arm, drawing: Drawing, *, cache: str) -> ReferenceSamples | None:
    """Return the texts that `cache` keeps of the reference, without asking it anything; None if there are none yet."""
    for api in _PATHS if _is_url(reference) else ():
        path = _path(reference, api, drawing, cache=cache)
        if read_kept(path) is not None:
            log.info("the texts of %s are those of %s", reference.name, path)
            return read_reference_samples(path)
    return None


def draw_samples(reference: Arm, api: Api, drawing: Drawing, *, cache: str) -> ReferenceSamples:
    """Draw the texts, and keep them in `cache`."""
    path = _path(reference, api, drawing, cache=cache)
    client, card = client_of(reference), check_arm(reference)
    prompt = drawing.prompt if drawing.prompt is not None else _default_prompt(reference, api, card)
    body = _body(reference, api, prompt=prompt, max_tokens=drawing.max_tokens)
    if knows_vllms_fields(card):
        body["top_k"] = 0

    def part(first: int) -> list[DrawnText]:
        place = f"{path}.parts/{first}.json"
        kept = read_kept(place)
        if kept is not None:
            return [DrawnText(**values) for values in json.loads(kept)]
        wanted = min(TEXTS_PER_REQUEST, drawing.num_samples - first)
        texts: list[DrawnText] = []
        while len(texts) < wanted:
            # A server that does not know `n` returns one text at a time.
            seed = (drawing.seed * 1_000_003 + first + len(texts)) % (1 << 31)
            texts += _ask(client, api, body, count=wanted - len(texts), seed=seed)
        write_file(place, json.dumps([asdict(text) for text in texts]).encode())
        return texts

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        starts = range(0, drawing.num_samples, TEXTS_PER_REQUEST)
        texts = [text for found in threads.map(part, starts) for text in found]
    facts = {
        "reference": reference.name,
        "url": reference.url,
        "is_openai": is_openai(reference.url),
        "api": api,
        **{**asdict(drawing), "prompt": prompt},
        # A text after the end-of-text token starts from nothing.
        "has_own_prompt": api == "chat" or drawing.prompt is not None,
        "temperature": 1.0,
        "top_p": 1.0,
    }
    write_reference_samples(path, texts, facts)
    filesystem, parts = open_filesystem(f"{path}.parts")
    filesystem.rm(parts, recursive=True)
    return read_reference_samples(path)


def _is_url(reference: Arm) -> bool:
    return reference.source.startswith(("http://", "https://"))


def _path(reference: Arm, api: Api, drawing: Drawing, *, cache: str) -> str:
    # Not the server's description of the model: kept texts must be found without asking for it.
    facts = [reference.url, reference.model, reference.control, api, asdict(drawing)]
    return f"{cache}/samples-{digest(facts, size=16)}.jsonl"


def _default_prompt(reference: Arm, api: Api, card: Mapping[str, Any]) -> str:
    if api == "chat":
        return CHAT_PROMPT
    if is_openai(reference.url):
        return _START
    try:
        return Probe(reference, card).empty_prompt
    except ConfigError:
        log.warning(
            "%s does not say which token a text starts with, and gets an empty prompt; kl_gpt3_callback."
            "reference_prompt sets another",
            reference.url,
        )
        return ""


def _body(reference: Arm, api: Api, *, prompt: str, max_tokens: int) -> dict[str, Any]:
    # Draw from the whole distribution, whatever the server's defaults are.
    body: dict[str, Any] = {"model": reference.model, "temperature": 1.0, "top_p": 1.0}
    if reference.control is not None:
        body["control"] = reference.control
    if api == "chat":
        # OpenAI's newer models refuse the name that all other servers know.
        limit = "max_completion_tokens" if is_openai(reference.url) else "max_tokens"
        return body | {"messages": [{"role": "user", "content": prompt}], limit: max_tokens, "logprobs": True}
    return body | {"prompt": prompt, "max_tokens": max_tokens, "logprobs": 1}


def _ask(client: Asks, api: Api, body: Mapping[str, Any], *, count: int, seed: int) -> list[DrawnText]:
    choices = client.post(_PATHS[api], {**body, "n": count, "seed": seed}).get("choices")
    if not isinstance(choices, list) or not choices:
        raise RefusedError(f"{_PATHS[api]} was answered without choices; is {body['model']} a text model?")
    ordered = sorted(choices, key=lambda choice: choice.get("index", 0))
    return [text_of_choice(choice) for choice in ordered[:count]]
