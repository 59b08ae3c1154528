"""Write prompts from function headers of the running Python's library: `configs/prompts/functions.jsonl`.

    python -m jobs.make_prompts --output configs/prompts/functions.jsonl

A prompt is the header alone, from `def` to its colon; the model writes the rest.
"""

import argparse
import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo"}
MAX_CHARACTERS = 160


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    library = Path(arguments.library or sysconfig.get_paths()["stdlib"])
    headers = {
        header: None for path in library_files(library) for header in headers_of(path.read_text(encoding="utf-8"))
    }
    if len(headers) < arguments.num:
        raise ConfigError(f"--num {arguments.num}: the library has {len(headers)} headers; ask for at most that many")
    # The hash picks from the whole library, and the choice hardly changes from one version of Python to the next.
    chosen = sorted(headers, key=lambda header: hashlib.blake2b(header.encode()).digest())[: arguments.num]
    lines = [json.dumps({"text": header}, ensure_ascii=True) + "\n" for header in chosen]
    write_text(arguments.output, "".join(lines))
    print(f"{arguments.output}: {len(lines)} prompts")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "make_prompts",
        (__doc__ or "").splitlines()[0],
        examples=("--output functions.jsonl", "--output functions.jsonl --num 100 --library src/"),
    )
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--num", type=int, default=500, metavar="N", help="prompts to write (default 500)")
    parser.add_argument(
        "--library", metavar="DIR", help="folder of source files; by default the running Python's library"
    )
    return parser


def library_files(root: Path) -> list[Path]:
    return [
        path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]


def headers_of(source: str) -> Iterator[str]:
    """Yield the headers of public top-level functions as they are written, without a line end."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            header = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1]).rstrip()
            # Skips headers with a comment, and functions whose body is on the same line.
            if header.endswith(":") and "#" not in header and len(header) <= MAX_CHARACTERS:
                yield header


if __name__ == "__main__":
    cli.run(main)
