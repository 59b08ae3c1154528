"""The tiny models of the tutorial of judges: what they learn, and that they are asked in the words they learned."""

import json
from pathlib import Path

import pytest

from jobs import tutorial_models
from jobs.tutorial_models import LibraryFunction, library_pieces, main, split
from phf_ray.checkpoint import read_info
from phf_ray.errors import ConfigError
from phf_ray.evaluation.answers.templates import words_of
from phf_ray.generation.chat.prompts import InstructionPrompt

FUNCTION = """\
class Reader:
    def read(self, path):
        first = open(path, "rb")
        for line in first:

            print(line, end="")
        a = 1
        b = 2
        c = 3
        d = 4
        e = 5
        f = 6

    def short(self):
        return 1
"""


def library(folder: Path, num: int) -> Path:
    folder.mkdir()
    for number in range(num):
        (folder / f"m{number}.py").write_text(FUNCTION.replace("def read", f"def read_{number}"))
    return folder


def test_pieces_are_bodies_at_the_left_margin_without_blank_lines(tmp_path):
    (piece,) = library_pieces(library(tmp_path / "lib", 1))
    lines = ('first = open(path, "rb")', "for line in first:", '    print(line, end="")', "a = 1", "b = 2", "c = 3")
    assert piece == LibraryFunction("def read_0(self, path):", lines)
    learned = {name: list(answer(piece)) for name, answer in tutorial_models.ANSWERS.items()}
    assert learned == {
        "plain": list(lines[:3]),
        "careless": ['first=open(path,"rb") ', "for line in first: ", '    print(line,end="") '],
        "long": list(lines[:5]),
    }


def test_no_model_learns_from_a_header_that_it_is_asked(monkeypatch):
    monkeypatch.setattr(tutorial_models, "NUM_PROMPTS", 3)
    pieces = [LibraryFunction(f"def f{number % 8}():", ("pass",)) for number in range(16)]
    learned, asked = split(pieces)
    assert (len(asked), len(learned)) == (3, 10)
    assert not {one.header for one in learned} & set(asked)
    assert split(pieces[::-1])[1] == asked
    with pytest.raises(ConfigError, match="there are 5 functions to learn from, too few"):
        split(pieces[:5])


def test_models_are_folders_that_are_asked_in_the_words_that_they_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tutorial_models, "NUM_PROMPTS", 3)
    monkeypatch.setattr(tutorial_models, "_FIRST_STEPS", 1)
    monkeypatch.setattr(tutorial_models, "_MORE_STEPS", 1)
    command = ["--output", str(tmp_path / "out"), "--library", str(library(tmp_path / "lib", 8))]
    assert main(command) == 0
    prompts = [
        json.loads(line)["instruction"] for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()
    ]
    assert len(prompts) == 3
    folders = sorted((tmp_path / "out" / "models").iterdir())
    assert [folder.name for folder in folders] == ["careless", "long", "plain"]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 3
    words = words_of(folders[0], read_info(folders[0]), chosen=None)
    assert words(InstructionPrompt(prompts[0])) == f"{prompts[0]}\n# Body:\n"
    capsys.readouterr()
    assert main(command) == 0
    assert "there already" in capsys.readouterr().out
