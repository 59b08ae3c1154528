"""Pages for those who come from another library name keys, commands and methods that are there."""

import re

import pytest
from places import ROOT

from jobs.commands import COMMANDS

PAGES = [ROOT / "docs" / f"coming_from_{name}.md" for name in ("trl", "openrlhf", "alpaca_farm", "coh")]
SECTIONS = "dataset|model|objective|training|rollouts|algorithm"


def known_keys():
    """Keys of the list in configure.md, and the sections above them; without the name of the objective or algorithm."""
    listed = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "configure.md").read_text(encoding="utf-8"), re.MULTILINE)
    bare = {re.sub(r" \(\w+\)|\[\]", "", key) for key in listed}
    return {".".join(key.split(".")[:depth]) for key in bare for depth in range(1, 6)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_that_a_page_names_are_those_of_the_configuration(page):
    text, known = page.read_text(encoding="utf-8"), known_keys()
    # What stands right of the first column: the left one is theirs.
    ours = [line.split(" | ", 1)[1] for line in text.splitlines() if line.startswith("| ") and " | " in line]
    named = [key for cell in ours for key in re.findall(rf"`((?:{SECTIONS})\.[\w.]*\w)", cell)]
    assert len(named) > 10
    assert [key for key in named if key not in known and key != "algorithm.name"] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_methods_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    commands = re.findall(r"`phf ([\w-]+)", text)
    assert commands
    assert [name for name in commands if name not in COMMANDS] == []
    for task, methods in re.findall(r"--task (\w+) --method ([^|;\n]+)", text):
        names = [name for pair in re.findall(r"^(\w+)|`(\w+)`", methods) for name in pair if name]
        assert names
        for method in names:
            assert (ROOT / "configs" / task / f"{method}.yml").is_file(), (task, method)
