"""Draws texts from a reference model once, and keeps them."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import fsspec

from phf_ray.evaluation.arms import Arm, check_arm, client_of, knows_vllms_fields
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.requests import text_of
from phf_ray.http.client import RefusedError
from phf_ray.storage.files import write_file
from phf_ray.storage.hashing import digest

TEXTS_PER_REQUEST = 16
REQUESTS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ReferenceText:
    text: str
    ended: bool
    """Whether the text ended by itself, with the end-of-text token, and not at the token limit."""
    ids: tuple[int, ...] | None
    """The tokens as drawn, without the end-of-text token; None if the server does not say."""


def reference_texts(
    reference: Arm, *, num_samples: int, max_tokens: int, cache: str, seed: int = 0
) -> list[ReferenceText]:
    """Return texts drawn from the reference at temperature 1. `cache`, a folder or URL, keeps them for the next call.

    They are kept under a hash of everything that determines them, including the reference's weights or its server's
    description of them.
    """
    facts = {"reference": facts_of(reference), "num_samples": num_samples, "max_tokens": max_tokens, "seed": seed}
    path = f"{cache}/texts-{digest(facts, size=16)}.json"
    kept = read_kept(path)
    if kept is not None:
        return [
            ReferenceText(text["text"], text["ended"], None if text["ids"] is None else tuple(text["ids"]))
            for text in json.loads(kept)["texts"]
        ]
    texts = list(_draw(reference, num_samples=num_samples, max_tokens=max_tokens, seed=seed))
    content = {"facts": facts, "texts": [asdict(text) for text in texts]}
    write_file(path, (json.dumps(content) + "\n").encode())
    return texts


def facts_of(arm: Arm) -> list[str | None]:
    """Return the facts that decide an arm's answers: fingerprint, or else URL and model name; and control token."""
    return [*([arm.fingerprint] if arm.fingerprint else [arm.url, arm.model]), arm.control]


def read_kept(path: str) -> bytes | None:
    filesystem, name = fsspec.core.url_to_fs(path)
    return bytes(filesystem.cat_file(name)) if filesystem.exists(name) else None


def _draw(reference: Arm, *, num_samples: int, max_tokens: int, seed: int) -> Iterator[ReferenceText]:
    client = client_of(reference)
    card = check_arm(reference)
    body: dict[str, Any] = {
        "model": reference.model,
        "prompt": Probe(reference, card).empty_prompt,
        "max_tokens": max_tokens,
        # Draw from the whole distribution, whatever the server's defaults are.
        "temperature": 1.0,
        "top_p": 1.0,
    }
    if knows_vllms_fields(card):
        body |= {"top_k": 0, "return_token_ids": True}
    if reference.control is not None:
        body["control"] = reference.control

    def ask(first: int) -> list[ReferenceText]:
        wanted = min(TEXTS_PER_REQUEST, num_samples - first)
        texts: list[ReferenceText] = []
        while len(texts) < wanted:
            # A server that does not know `n` returns one text at a time.
            asked = {"n": wanted - len(texts), "seed": (seed * 1_000_003 + first + len(texts)) % (1 << 31)}
            choices = client.post("/v1/completions", body | asked)["choices"]
            if not choices:
                raise RefusedError(f"{reference.url} answered without choices; is {reference.model} a text model?")
            ordered = sorted(choices, key=lambda choice: choice["index"])
            texts += [_reference_text(choice, reference) for choice in ordered[: wanted - len(texts)]]
        return texts

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        for texts in threads.map(ask, range(0, num_samples, TEXTS_PER_REQUEST)):
            yield from texts


def _reference_text(choice: Mapping[str, Any], reference: Arm) -> ReferenceText:
    ended = choice.get("finish_reason") == "stop"
    ids = choice.get("token_ids")
    return ReferenceText(
        # A cut inside a character of several bytes leaves a replacement character that is not part of the text.
        text=text_of(choice, reference).rstrip("\ufffd"),
        ended=ended,
        ids=None if ids is None else tuple(ids[:-1] if ended else ids),
    )
