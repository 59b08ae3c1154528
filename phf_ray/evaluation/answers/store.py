"""Keeps answers: a file for each while they come, and one file of each model's once a run is over.

Answers are found by the keys of their requests, so other settings, prompts or weights draw new ones beside the old.
"""

import contextlib
import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from urllib.parse import quote

from phf_ray.errors import DataError
from phf_ray.storage.files import open_filesystem, store_errors, write_file

DRAWN = "drawn"


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    key: str
    prompt: str
    """As it was sent."""
    seed: int
    text: str
    finish_reason: str | None
    num_tokens: int | None


def file_name(arm: str) -> str:
    """Return the arm's name as the name of a file: `Qwen/Qwen3-8B` has a slash."""
    quoted = quote(arm, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E")


class AnswerStore:
    """The answers below one folder or URL."""

    def __init__(self, output: str):
        self._folder = f"{output.rstrip('/')}/{DRAWN}"

    def add(self, arm: str, answer: DrawnAnswer) -> None:
        content = json.dumps(asdict(answer)) + "\n"
        write_file(f"{self._folder}/{file_name(arm)}/{answer.key}.json", content.encode())

    def read(self, arm: str) -> dict[str, DrawnAnswer]:
        """Return the model's answers by key. Raises DataError with the name of a file that holds none."""
        found = {}
        for name, content in self._contents(arm).items():
            try:
                answers = [DrawnAnswer(**json.loads(line)) for line in content.splitlines()]
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"{name} can't be read as answers that were drawn ({type(error).__name__}: {error}); remove it, "
                    "and they are drawn again"
                ) from None
            found.update({answer.key: answer for answer in answers})
        return found

    def gather(self, arm: str) -> dict[str, DrawnAnswer]:
        """Put the model's answers into one file, and return them by key."""
        parts = [name for name in self._contents(arm) if name.endswith(".json")]
        answers = self.read(arm)
        if not parts:
            return answers
        lines = [json.dumps(asdict(answers[key])) + "\n" for key in sorted(answers)]
        write_file(f"{self._folder}/{file_name(arm)}.jsonl", "".join(lines).encode())
        # Only now, and only these: until the file is there, they are all there is, and others may have come meanwhile.
        filesystem, root = open_filesystem(f"{self._folder}/{file_name(arm)}")
        for name in parts:
            # Another job may gather them, too.
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(name)
        with contextlib.suppress(OSError):
            filesystem.rmdir(root)
        return answers

    def _contents(self, arm: str) -> Mapping[str, bytes]:
        filesystem, root = open_filesystem(self._folder)
        whole, parts = f"{root}/{file_name(arm)}.jsonl", f"{root}/{file_name(arm)}"
        with store_errors(self._folder):
            found: dict[str, bytes] = {}
            # The parts first: when another job has gathered one that was listed, the whole file has it.
            with contextlib.suppress(FileNotFoundError):
                names = sorted(str(name) for name in filesystem.ls(parts, detail=False, refresh=True))
                for name in names:
                    # `write_file` leaves other names behind where it was killed.
                    if posixpath.splitext(name)[1] == ".json":
                        with contextlib.suppress(FileNotFoundError):
                            found[name] = filesystem.cat_file(name)
            if filesystem.exists(whole):
                found = {whole: filesystem.cat_file(whole), **found}
            return found
