"""Writes code from the guides in docs/ to files."""

import re
from pathlib import Path

from places import ROOT


def write_scorer_of_the_guide(folder: Path) -> str:
    """Write the module of docs/extend.md to the folder. Return its scorer's name in configurations."""
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (source,) = [example for example in examples if "class ShoutingScorer" in example]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_scorers.py").write_text(source)
    return "my_scorers:ShoutingScorer"
