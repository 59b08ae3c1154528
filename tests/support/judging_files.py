"""Pairs to judge and pools that judge them, made on the spot, and what was judged."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phf_ray.feedback import read_feedback

PROMPT = "Which is better?\n{instruction}\n(a) {output_1}\n(b) {output_2}\nSay Output (a) or Output (b).\n"


def pair_rows(num: int, *, begin: int = 0) -> list[dict[str, Any]]:
    drawn = random.Random(begin)
    return [
        {
            "instruction": f"Write {number} words",
            "input": "" if number % 3 else f"about {number}",
            "output_1": "word " * drawn.randint(1, 30) + str(number),
            "output_2": "other " * drawn.randint(1, 30) + str(number),
            "generator_1": "base",
            "generator_2": "new",
        }
        for number in range(begin, begin + num)
    ]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    file.write_text(json.dumps(list(rows)), encoding="utf-8")
    return str(file)


def write_pool(
    folder: Path, *, name: str = "pool.yml", judge: str = "price: {input: 1.0, output: 2.0}", **changes: str
) -> str:
    """Write a pool of one judge behind a URL, which the caller gives, and return its file."""
    values = {"batch_size": "1", "decoding": "{temperature: 0.0, max_tokens: 10}", **changes}
    settings = "".join(f"    {key}: {value}\n" for key, value in values.items())
    (folder / "prompt.txt").write_text(PROMPT * int(values["batch_size"]), encoding="utf-8")
    file = folder / "pool.yml"
    file.write_text(
        "annotators:\n"
        "  - name: asked\n"
        f"    judge: {{chat: {{model: m, {judge}}}}}\n"
        "    prompt: prompt.txt\n"
        "    parser: {regex: {1: 'Output \\(a\\)', 2: 'Output \\(b\\)'}}\n" + settings,
        encoding="utf-8",
    )
    return str(file)


RULES = """\
annotators:
  - {name: longer, judge: {rule: longer}}
  - {name: shorter, judge: {rule: shorter}}
"""


def comparisons(corpus: Path) -> list[tuple[Any, ...]]:
    """The rows of what was judged, without what an answer took."""
    found = []
    for row in read_feedback(str(corpus)):
        meta = {name: value for name, value in json.loads(row.meta).items() if name != "seconds"}
        found.append((row.id, row.prompt, row.output_1, row.output_2, row.preference, row.annotator, str(meta)))
    return found
