"""The code names no scorer by its class, so that scorers from outside have what ours have."""

import ast

from places import ROOT

from phf_ray.scorers.build import SCORERS, SHORT_NAMES


def test_no_code_asks_for_a_scorer_by_its_class_name():
    """What differs between scorers is an attribute of the class, which scorers from outside can have too."""
    registry = ROOT / "phf_ray" / "scorers" / "build.py"
    files = [path for room in ("phf_ray", "serve", "jobs") for path in (ROOT / room).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in files
        if path != registry
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in SCORERS
    ]
    assert len(files) > 200
    assert found == []
    # In the registry: a key each, and the short names.
    names = [
        node.value
        for node in ast.walk(ast.parse(registry.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in SCORERS
    ]
    assert len(names) == len(SCORERS) + len(SHORT_NAMES)
