"""Train three tiny models in half a minute, on lines of Python's library, for the tutorial of judges.

Each is given the header of a function and goes on: `plain` with three lines, `long` with five, `careless` with three
whose white space is spoiled. They learn how such lines look, and nothing of what they mean. `plain` learns first; the
others go on from it. Beside the models: `prompts.jsonl`, headers that no model saw, and `scorer.yml`, a pool whose one
judge is pycodestyle.
"""

import argparse
import copy
import hashlib
import json
import re
import shutil
import sysconfig
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TEMPLATE = {"prompt_noinputs": "{instruction}\n# Body:\n", "prompt_inputs": "{instruction}\n{input}\n# Body:\n"}
"""The comment tells a model of so few steps that the text does not end here."""
POOL = "annotators:\n  - name: pycodestyle\n    judge: {scorer: {class_name: PEP8Scorer}}\n"
NUM_PROMPTS = 120
_FEWEST_LINES = 6
_VOCABULARY, _WIDTH, _LAYERS, _POSITIONS = 512, 64, 2, 256
_BATCH, _LENGTH = 16, 128
_FIRST_STEPS, _MORE_STEPS = 300, 60
"""Of `plain`, and of each that goes on from it."""
_HEADER = re.compile(r"\s*def \w+\(.*\):")


class LibraryFunction(NamedTuple):
    header: str
    lines: tuple[str, ...]
    """The first lines of the function's body, to the left margin."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    output = Path(arguments.output)
    if output.is_file():
        raise ConfigError(f"--output {output} is a file; give a folder")
    learned, held_out = split(library_pieces(Path(arguments.library or sysconfig.get_paths()["stdlib"])))
    write_text(output / "prompts.jsonl", "".join(json.dumps({"instruction": header}) + "\n" for header in held_out))
    write_text(output / "scorer.yml", POOL)
    if all((output / "models" / name / "config.json").is_file() for name in ANSWERS):
        print(f"{output}/models: there already")
        return 0
    train_all(learned, output / "models")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser("tutorial_models", __doc__, examples=("--output out/judge", "--output out/judge --library src"))
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the models, prompts and pool")
    parser.add_argument("--library", metavar="DIR", help="Python files to learn from (default: those of this Python)")
    return parser


# -- What they learn --------------------------------------------------------------------------------------------------


def library_pieces(library: Path) -> list[LibraryFunction]:
    """Return the functions in a folder's files whose headers are one line and whose bodies are long enough."""
    pieces = []
    for path in sorted(library.glob("*.py")):
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        for number, line in enumerate(lines):
            if _HEADER.fullmatch(line) and len(line) < 80:
                body = _body(lines[number + 1 : number + 1 + _FEWEST_LINES], indent=_indent(line))
                if len(body) >= _FEWEST_LINES and '"""' not in "".join(body):
                    pieces.append(LibraryFunction(line.strip(), body))
    return pieces


def _body(lines: Sequence[str], *, indent: int) -> tuple[str, ...]:
    end = next((number for number, line in enumerate(lines) if _indent(line) <= indent), len(lines))
    return tuple(textwrap.dedent("\n".join(lines[:end])).split("\n"))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def split(pieces: Sequence[LibraryFunction]) -> tuple[list[LibraryFunction], list[str]]:
    """Return the pieces to learn from, and headers of others. Hashes choose them."""
    headers = sorted({one.header for one in pieces}, key=lambda header: hashlib.blake2b(header.encode()).digest())
    if len(headers) < 2 * NUM_PROMPTS:
        raise ConfigError(f"there are {len(headers)} functions to learn from, too few; give --library with more files")
    held_out = headers[:NUM_PROMPTS]
    return [one for one in pieces if one.header not in set(held_out)], held_out


def _spoiled(line: str) -> str:
    return f"{line.replace(', ', ',').replace(' = ', '=')} "


ANSWERS: dict[str, Callable[[LibraryFunction], Sequence[str]]] = {
    "plain": lambda piece: piece.lines[:3],
    "careless": lambda piece: [_spoiled(line) for line in piece.lines[:3]],
    "long": lambda piece: piece.lines[:5],
}
"""Model -> the answers that it learns."""


# -- Training ---------------------------------------------------------------------------------------------------------


def train_all(pieces: Sequence[LibraryFunction], folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _tokenizer(pieces)
    first = _model()
    for name, answer in ANSWERS.items():
        model = first if name == "plain" else copy.deepcopy(first)
        steps, rate = (_FIRST_STEPS, 4e-3) if name == "plain" else (_MORE_STEPS, 2e-3)
        loss = _train(model, _tokens(pieces, answer, tokenizer), num_steps=steps, rate=rate)
        _save(model, tokenizer, folder / name)
        print(f"{folder / name}: {steps} steps, loss {loss:.2f} nats per token", flush=True)


def _tokenizer(pieces: Sequence[LibraryFunction]) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_prompt(one.header) + "\n".join(one.lines) for one in pieces), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def _prompt(header: str) -> str:
    return TEMPLATE["prompt_noinputs"].replace("{instruction}", header)


def _model() -> "GPT2LMHeadModel":
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    no_dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape: dict[str, Any] = {"n_embd": _WIDTH, "n_layer": _LAYERS, "n_head": 4, "n_positions": _POSITIONS}
    return GPT2LMHeadModel(GPT2Config(vocab_size=_VOCABULARY, bos_token_id=0, eos_token_id=0, **shape, **no_dropout))


def _tokens(
    pieces: Sequence[LibraryFunction], answer: Callable[[LibraryFunction], Sequence[str]], tokenizer: Any
) -> "Tensor":
    """Return one stream of headers and answers, each after the end of text."""
    import torch

    texts = [END_OF_TEXT + _prompt(one.header) + "\n".join((*answer(one), "")) for one in pieces]
    return torch.tensor([id_ for ids in tokenizer(texts)["input_ids"] for id_ in ids])


def _train(model: "GPT2LMHeadModel", ids_N: "Tensor", *, num_steps: int, rate: float) -> float:
    """Train on windows of the stream that are drawn at random; return the last loss."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 10) * (1 - step / num_steps)
    )
    loss = torch.tensor(0.0)
    for _ in range(num_steps):
        starts = torch.randint(len(ids_N) - _LENGTH, (_BATCH,), generator=generator).tolist()
        window_BT = torch.stack([ids_N[start : start + _LENGTH + 1] for start in starts])
        logits_BTV = model(window_BT[:, :-1]).logits
        loss = functional.cross_entropy(logits_BTV.flatten(0, 1), window_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return loss.item()


def _save(model: "GPT2LMHeadModel", tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    from phf_ray.checkpoint import CheckpointInfo, RowInfo, write_info

    scratch = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    rows = RowInfo(template="header.json", template_text=json.dumps(TEMPLATE), length=_LENGTH)
    write_info(scratch, CheckpointInfo(task="tutorial", rows=rows))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


if __name__ == "__main__":
    cli.run(main)
