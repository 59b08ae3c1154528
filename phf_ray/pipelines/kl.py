"""KL(reference || model) over HTTP: texts of a reference, drawn once and kept, and what any served model makes of them.

Both are asked about the same texts in the same way, as token ids with `echo` and `logprobs`, so that the KL of a model
with itself is 0. Where the two share a tokenizer and the reference's server says which tokens it drew, those are the
tokens, and the estimate is unbiased. Otherwise each is asked for the tokens that its own tokenizer makes of the text,
which stand for all ways to spell it: close for models of ordinary text, meaningless for one that draws noise (D-2b).
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import fsspec

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import Config
from phf_ray.errors import ConfigError
from phf_ray.http.client import RefusedError
from phf_ray.kl import KL, EncodedText, encode, forward_kl
from phf_ray.pipelines.evaluate import Arm, Probe, check_arm, client_of, described, digest, knows_vllms_fields, text_of
from phf_ray.report import KLInfo
from phf_ray.storage.files import write_file

log = logging.getLogger(__name__)

_TEXTS_PER_REQUEST = 16
_REQUESTS_AT_ONCE = 8
_IMPOSSIBLE = -9999.0
"""What servers report in place of minus infinity, which JSON does not have."""


@dataclass(frozen=True, slots=True)
class ReferenceText:
    text: str
    ended: bool
    """By itself, with the end-of-text token; otherwise it was cut at the token limit."""
    ids: tuple[int, ...] | None
    """The tokens as they were drawn, without the end of text; None where the server does not say."""


def reference_texts(
    reference: Arm, *, num_samples: int, max_tokens: int, cache: str, seed: int = 0
) -> list[ReferenceText]:
    """Texts drawn from the reference at temperature 1; from `cache`, a folder or URL, if they were drawn before.

    What they are kept under is a hash of all that determines them: the reference's weights, or what its server says of
    it, among them.
    """
    facts = {"reference": _facts(reference), "num_samples": num_samples, "max_tokens": max_tokens, "seed": seed}
    path = f"{cache}/texts-{digest(facts, size=16)}.json"
    kept = _read(path)
    if kept is not None:
        return [
            ReferenceText(text["text"], text["ended"], None if text["ids"] is None else tuple(text["ids"]))
            for text in json.loads(kept)["texts"]
        ]
    texts = list(_draw(reference, num_samples=num_samples, max_tokens=max_tokens, seed=seed))
    content = {"facts": facts, "texts": [asdict(text) for text in texts]}
    write_file(path, (json.dumps(content) + "\n").encode())
    return texts


def _facts(arm: Arm) -> list[str | None]:
    """What decides an arm's answers: the model where its fingerprint is known, else where it is served."""
    return [*([arm.fingerprint] if arm.fingerprint else [arm.url, arm.model]), arm.control]


def has_control_per_line(info: CheckpointInfo | None, config: Config) -> bool:
    """Whether a model was trained with a control token before every line, where its texts get one then."""
    if info is None or info.control is None:
        return False
    per_line = info.has_control_per_segment and config.scoring.segmenter == "lines"
    return per_line or config.kl_gpt3_callback.should_insert_prefix


def with_prefix(arm: Arm, prefix: str | None) -> Arm:
    """The arm, asked with the control token whose text is `kl_gpt3_callback.prefix`; as it is where that is None."""
    if prefix is None:
        return arm
    own = None if arm.checkpoint is None else arm.checkpoint.control
    if own is None or prefix not in (own.good, own.bad):
        tokens = "no control tokens" if own is None else f"the control tokens {own.good} and {own.bad}"
        raise ConfigError(
            f"kl_gpt3_callback.prefix: {prefix!r}, but {arm.name} has {tokens}; give a control token that every model "
            "has, or null to ask each as it is asked for samples"
        )
    return replace(arm, control="good" if prefix == own.good else "bad")


def _read(path: str) -> bytes | None:
    filesystem, name = fsspec.core.url_to_fs(path)
    return bytes(filesystem.cat_file(name)) if filesystem.exists(name) else None


def _draw(reference: Arm, *, num_samples: int, max_tokens: int, seed: int) -> Iterator[ReferenceText]:
    client = client_of(reference)
    card = check_arm(reference)
    body: dict[str, Any] = {
        "model": reference.model,
        "prompt": Probe(reference, card).empty_prompt,
        "max_tokens": max_tokens,
        # From the whole distribution, whatever the server's defaults are.
        "temperature": 1.0,
        "top_p": 1.0,
    }
    if knows_vllms_fields(card):
        body |= {"top_k": 0, "return_token_ids": True}
    if reference.control is not None:
        body["control"] = reference.control

    def ask(first: int) -> list[ReferenceText]:
        wanted = min(_TEXTS_PER_REQUEST, num_samples - first)
        texts: list[ReferenceText] = []
        while len(texts) < wanted:
            # A server that knows no `n` brings one text at a time.
            asked = {"n": wanted - len(texts), "seed": (seed * 1_000_003 + first + len(texts)) % (1 << 31)}
            choices = client.post("/v1/completions", body | asked)["choices"]
            if not choices:
                raise RefusedError(f"{reference.url} answered without choices; is {reference.model} a text model?")
            ordered = sorted(choices, key=lambda choice: choice["index"])
            texts += [_reference_text(choice, reference) for choice in ordered[: wanted - len(texts)]]
        return texts

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
        for texts in threads.map(ask, range(0, num_samples, _TEXTS_PER_REQUEST)):
            yield from texts


def _reference_text(choice: Mapping[str, Any], reference: Arm) -> ReferenceText:
    ended = choice.get("finish_reason") == "stop"
    ids = choice.get("token_ids")
    return ReferenceText(
        # A cut inside a character of several bytes leaves a replacement character, which the text did not have.
        text=text_of(choice, reference).rstrip("\ufffd"),
        ended=ended,
        ids=None if ids is None else tuple(ids[:-1] if ended else ids),
    )


def check_kl(reference: Arm, arms: Sequence[Arm]) -> None:
    """Raises ConfigError where one of them can't be asked for log-probabilities."""
    for arm in (reference, *arms):
        SequenceScorer(arm).check()


def kl_of_arms(
    reference: Arm, arms: Sequence[Arm], *, num_samples: int, max_tokens: int, cache: str, per_line: Sequence[str] = ()
) -> dict[str, KLInfo]:
    """KL(reference || arm) by arm, on the same texts; kept in `cache`, so that what was measured is not asked again.

    `per_line`: names of arms, the reference among them, that were trained with a control token before every line.
    """
    reference, *arms = (described(arm, check_arm(arm)) for arm in (reference, *arms))
    check_kl(reference, arms)
    texts = reference_texts(reference, num_samples=num_samples, max_tokens=max_tokens, cache=cache)
    found = {}
    for arm in arms:
        facts = {
            "texts": [asdict(text) for text in texts],
            "reference": _facts(reference),
            "arm": _facts(arm),
            "per_line": [reference.name in per_line, arm.name in per_line],
        }
        path = f"{cache}/kl-{digest(facts, size=16)}.json"
        content = _read(path)
        if content is None:
            kl = measure_kl(
                reference,
                arm,
                texts,
                control_per_line=arm.name in per_line,
                reference_per_line=reference.name in per_line,
                cache=cache,
            )
            info = KLInfo(
                reference=reference.name,
                num_samples=kl.num_samples,
                num_impossible=kl.num_impossible,
                per_sequence=(kl.per_sequence.mean, kl.per_sequence.standard_error),
                per_token=(kl.per_token.mean, kl.per_token.standard_error),
                per_byte=(kl.per_byte.mean, kl.per_byte.standard_error),
            )
            write_file(path, (info.model_dump_json() + "\n").encode())
        else:
            info = KLInfo.model_validate_json(content)
        log.info("KL(%s || %s): %.4f +- %.4f nats per byte", reference.name, arm.name, *info.per_byte)
        found[arm.name] = info
    return found


def measure_kl(
    reference: Arm,
    model: Arm,
    texts: Sequence[ReferenceText],
    *,
    control_per_line: bool = False,
    reference_per_line: bool = False,
    cache: str | None = None,
) -> KL:
    """`control_per_line`: the model was trained with a control token before every line, not one at the head.

    `reference_per_line`: so was the reference; a model is only then at no distance from itself.
    `cache`: folder or URL that keeps the reference's own log-probabilities.
    """
    kept = [text for text in texts if text.text or text.ended]
    asked = SequenceScorer(reference, control_per_line=reference_per_line)
    other = SequenceScorer(model, control_per_line=control_per_line)
    drawn = [list(text.ids) for text in kept if text.ids is not None]
    own, theirs = asked.tokenize(kept), other.tokenize(kept)
    if len(drawn) == len(kept) and own == theirs:
        own = theirs = drawn
    else:
        log.warning(
            "KL(%s || %s) is of texts tokenized anew, not of the tokens that were drawn", reference.name, model.name
        )
    return forward_kl(
        _own_logprobs(asked, kept, own, cache=cache),
        other.logprobs(kept, theirs),
        num_tokens=[len(ids) + text.ended for ids, text in zip(own, kept, strict=True)],
        num_bytes=[max(1, len(text.text.encode("utf-8"))) for text in kept],
    )


def _own_logprobs(
    asked: "SequenceScorer", texts: Sequence[ReferenceText], ids: Sequence[Sequence[int]], *, cache: str | None
) -> list[float]:
    if cache is None:
        return asked.logprobs(texts, ids)
    facts = {
        "reference": _facts(asked.arm),
        "per_line": asked.control_per_line,
        "ids": [list(one) for one in ids],
        "ended": [text.ended for text in texts],
    }
    path = f"{cache}/logprobs-{digest(facts, size=16)}.json"
    kept = _read(path)
    if kept is not None:
        return [float(value) for value in json.loads(kept)]
    found = asked.logprobs(texts, ids)
    write_file(path, (json.dumps(found) + "\n").encode())
    return found


class SequenceScorer:
    """Log-probabilities of whole texts from a server that echoes prompts with log-probabilities."""

    def __init__(self, arm: Arm, *, control_per_line: bool = False):
        self.arm = arm
        self.control_per_line = control_per_line
        self._client = client_of(arm)
        self._probe = Probe(arm, check_arm(arm))
        self._first_id, self._end_id = self._probe.first_id, self._probe.end_id
        own = None if arm.checkpoint is None else arm.checkpoint.control
        self._control = "none" if own is None and arm.control is None else arm.control or "good"
        self._line_control_id: int | None = None
        if control_per_line and own is not None and self._control != "none":
            [self._line_control_id] = self._probe.token_ids(own.bad if self._control == "bad" else own.good)

    def check(self) -> None:
        """Raises ConfigError where the server gives no log-probabilities of a prompt."""
        self.logprobs([ReferenceText("", ended=True, ids=None)], [[]])

    def tokenize(self, texts: Sequence[ReferenceText]) -> list[list[int]]:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
            return list(threads.map(lambda text: self._probe.token_ids(text.text) if text.text else [], texts))

    def logprobs(self, texts: Sequence[ReferenceText], ids: Sequence[Sequence[int]]) -> list[float]:
        """Log-probability of each text, in these tokens, given the end-of-text token before it."""
        pairs = list(zip(texts, ids, strict=True))
        parts = [pairs[first : first + _TEXTS_PER_REQUEST] for first in range(0, len(pairs), _TEXTS_PER_REQUEST)]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
            return [logprob for part in threads.map(self._part, parts) for logprob in part]

    def _part(self, pairs: Sequence[tuple[ReferenceText, Sequence[int]]]) -> list[float]:
        encoded = [
            encode(ids, first_id=self._first_id, ends_with=self._end_id if text.ended else None) for text, ids in pairs
        ]
        control = self._control
        if self._line_control_id is not None:
            control = "none"
            offsets = [list(echo["text_offset"]) for echo in self._echo(encoded, control=control)]
            encoded = [
                self._with_line_control(text, ids=ids, begins=begins[1:])
                for (text, ids), begins in zip(pairs, offsets, strict=True)
            ]
        echoed = self._echo(encoded, control=control)
        return [_counted_sum(echo["token_logprobs"], text) for echo, text in zip(echoed, encoded, strict=True)]

    def _with_line_control(self, text: ReferenceText, *, ids: Sequence[int], begins: Sequence[int]) -> EncodedText:
        return encode(
            ids,
            first_id=self._first_id,
            control_id=self._line_control_id,
            starts=line_starts(text.text, begins[: len(ids)]) or [0],
            ends_with=self._end_id if text.ended else None,
        )

    def _echo(self, encoded: Sequence[EncodedText], *, control: str) -> list[Mapping[str, Any]]:
        body: dict[str, Any] = {
            "model": self.arm.model,
            "prompt": [list(text.ids) for text in encoded],
            # Not every server takes 0; the token that is drawn is not looked at.
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 0,
        }
        if self.arm.checkpoint is not None or control != "none":
            body["control"] = control
        try:
            choices = self._client.post("/v1/completions", body)["choices"]
            found = [choice["logprobs"] for choice in sorted(choices, key=lambda choice: choice["index"])]
            return [{key: echo[key] for key in ("token_logprobs", "text_offset")} for echo in found]
        except (RefusedError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.arm.url} does not give log-probabilities of a prompt ({error}); KL needs a server with `echo` "
                "and `logprobs`, such as jobs.serve or vLLM"
            ) from None


def _counted_sum(token_logprobs: Sequence[float | None], text: EncodedText) -> float:
    """Sum over the tokens that count; minus infinity where one is impossible."""
    counted = [
        logprob for logprob, counts in zip(token_logprobs, text.counted, strict=False) if counts and logprob is not None
    ]
    if len(counted) != sum(text.counted):
        raise ConfigError(
            f"the server echoed {len(counted)} log-probabilities of {sum(text.counted)} tokens; KL needs one for each"
        )
    return float("-inf") if min(counted, default=0.0) <= _IMPOSSIBLE else sum(counted)


def line_starts(text: str, begins: Sequence[int]) -> list[int]:
    """Positions of the tokens with which the lines of `text` begin; `begins`: each token's first character.

    A token that reaches over a line's end belongs to the line of its first visible character, or without one of its
    last character: where training puts the control token.
    """
    starts: list[int] = []
    line = -1
    for position, begin in enumerate(begins):
        end = max(begin + 1, begins[position + 1] if position + 1 < len(begins) else len(text))
        visible = text[begin:end].lstrip()
        place = end - 1 if not visible else end - len(visible)
        number = text.count("\n", 0, place)
        if number > line:
            starts.append(position)
            line = number
    return starts
