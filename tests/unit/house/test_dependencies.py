"""pyproject.toml names what our modules import, and says why it names anything else."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions

from places import ROOT

PACKAGES = ("phf_ray", "serve", "jobs")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.lower())


def declared() -> dict[str, str]:
    """Name of each dependency, also of the extras of features -> its line of pyproject.toml."""
    lines = {}
    project = tomllib.loads(PROJECT)["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["chat"], *extras["ruff"]]:
        (line,) = [line for line in PROJECT.splitlines() if line.strip().startswith(f'"{requirement}",')]
        lines[normalized(re.match(r"[\w.-]+", requirement)[0])] = line
    return lines


def imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@cache
def imported() -> dict[str, set[str]]:
    """Distribution -> our files that import one of its packages, at the top or later."""
    distributions = packages_distributions()
    found = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in set(imports_of(ast.parse(path.read_text(encoding="utf-8")))):
                if name not in sys.stdlib_module_names and name not in PACKAGES:
                    for distribution in distributions.get(name, [name]):
                        found[normalized(distribution)].add(str(path.relative_to(ROOT)))
    return found


def test_what_is_imported_is_declared():
    found = imported()
    assert found["torch"], "nothing was read"
    missing = {name: sorted(files)[:3] for name, files in found.items() if name not in declared()}
    assert not missing, "add them to project.dependencies"


def test_what_is_declared_without_being_imported_says_why():
    found = imported()
    silent = [name for name, line in declared().items() if name not in found and "#" not in line]
    assert not silent, "say beside each what needs it, or remove it"
