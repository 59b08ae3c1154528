"""The file of a reference's texts and their log-probabilities: written here, and read in the original's format too.

Ours is JSON lines. The first says what the texts are: `format`, `reference`, `url`, `is_openai`, `api` (`completions`
or `chat`), `prompt`, `has_own_prompt` (whether the texts follow words, not end-of-text), `max_tokens`,
`num_samples`, `seed`, `temperature`, `top_p`. Each further line is a `DrawnText`.

The original's `~/.kl_gpt3/MODEL_N_tokens_cache.json` is one object: `model_name`, `texts` and `logprobs`, one sum per
text. Its texts begin with the prompt, the end-of-text token, which their log-probabilities leave out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from phf_ray.characters import whole_characters
from phf_ray.errors import ConfigError, DataError
from phf_ray.evaluation.kl.drawn import DrawnText, is_logprob
from phf_ray.storage.files import open_filesystem, store_errors, write_file

_FORMAT = "phf-reference-samples-1"
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class ReferenceSamples:
    reference: str
    """Name of the reference, as in `KL/<reference>/per_byte`."""
    is_openai: bool
    """Whether OpenAI's own API drew them: then their KL has the original's name, too."""
    texts: tuple[DrawnText, ...]
    prompt: str = ""
    """What a chat was asked for, or what the texts continue; empty if they start from nothing."""
    is_chat: bool = False

    def first(self, num_samples: int) -> "ReferenceSamples":
        return replace(self, texts=self.texts[:num_samples])


def write_reference_samples(path: str, texts: Sequence[DrawnText], facts: Mapping[str, Any]) -> None:
    lines = [{"format": _FORMAT, **facts}, *(asdict(text) for text in texts)]
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def read_reference_samples(path: str) -> ReferenceSamples:
    """Read a file of either format. Raises ConfigError if there is none, DataError if it holds something else."""
    return _parsed(_content(path), path)


def file_of_samples(path: str) -> bytes:
    """Return the content of a file that `read_reference_samples` can read. Raises as it does."""
    content = _content(path)
    _parsed(content, path)
    return content


def _content(path: str) -> bytes:
    filesystem, inner = open_filesystem(path)
    with store_errors(path):
        if not filesystem.isfile(inner):
            raise ConfigError(f"{path}: no such file; give a file of a reference's texts with their log-probabilities")
        return bytes(filesystem.cat_file(inner))


def _parsed(content: bytes, path: str) -> ReferenceSamples:
    try:
        text = content.decode("utf-8-sig")
        if not text.startswith('{"format"'):
            return _original(json.loads(text))
        head, *lines = text.rstrip("\n").split("\n")
        return _ours(json.loads(head), lines)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} holds no texts of a reference ({type(error).__name__}: {error}); give a samples-*.jsonl of "
            "--reference-cache, or the original's cache: an object with model_name, texts and logprobs"
        ) from None


def _ours(head: Mapping[str, Any], lines: Sequence[str]) -> ReferenceSamples:
    if head["format"] != _FORMAT:
        raise ValueError(f"the format is {head['format']}, not {_FORMAT}")
    texts = tuple(DrawnText(**json.loads(line)) for line in lines)
    # Files of older versions say it of no completions.
    is_after_prompt = head.get("has_own_prompt", head.get("api") == "chat")
    prompt = str(head["prompt"]) if is_after_prompt else ""
    return ReferenceSamples(
        str(head["reference"]), bool(head.get("is_openai")), texts, prompt, is_chat=head.get("api") == "chat"
    )


def _original(content: Mapping[str, Any]) -> ReferenceSamples:
    name, texts, logprobs = content["model_name"], content["texts"], content["logprobs"]
    if not isinstance(texts, list) or not isinstance(logprobs, list) or len(texts) != len(logprobs):
        raise ValueError("texts and logprobs must be lists of the same length")
    return ReferenceSamples(str(name), True, tuple(map(_original_text, texts, logprobs)))


def _original_text(text: str, logprob: Any) -> DrawnText:
    # DIFFERS: phf-ray counts the end of a text if the cached text shows it; the original counts it for the model alone,
    # and only for texts shorter than the longest of a batch (D-1).
    text = whole_characters(text).removeprefix(_END_OF_TEXT)
    has_end = text.endswith(_END_OF_TEXT)
    text = text.removesuffix(_END_OF_TEXT)
    if not text and not has_end:
        return DrawnText(text, None, error="empty, without a log-probability of its end")
    if not is_logprob(logprob):
        return DrawnText(text, None, error=f"the log-probability is {logprob}")
    return DrawnText(text, float(logprob), has_end=has_end)
