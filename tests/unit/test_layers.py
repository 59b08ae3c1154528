"""Who may import whom, and what must stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOOR_0 = {"errors", "records", "config", "checkpoint"}
SIDEWAYS = {
    ("training", "models"),
    ("training", "objectives"),
    ("generation", "models"),
    ("kl", "models"),
    ("report", "metrics"),
    ("sources", "corpus"),
    ("scorers", "segments"),
    ("models", "objectives"),  # the objective is called inside the wrapped forward, which FSDP2 needs
}
FORBIDDEN_ON_FLOOR_1 = {"ray", "wandb", "argparse"}
FORBIDDEN_ON_FLOOR_0 = FORBIDDEN_ON_FLOOR_1 | {"torch", "transformers", "datasets", "pyarrow"}


def imports_of(path: Path) -> set[str]:
    """Dotted names of all that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(name: str) -> str | None:
    """`phf_ray.scorers.pep8.X` -> `scorers`; None for what is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "phf_ray" and len(parts) > 1 else None


def files_of(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def floor_1_files() -> list[tuple[str, Path]]:
    found = []
    for path in files_of("phf_ray"):
        module = path.relative_to(ROOT / "phf_ray").parts[0].removesuffix(".py")
        if module not in FLOOR_0 | {"pipelines", "__init__"}:
            found.append((module, path))
    return found


@pytest.mark.parametrize("module", sorted(FLOOR_0))
def test_floor_0_imports_nothing_but_itself(module):
    names = imports_of(ROOT / "phf_ray" / f"{module}.py")
    assert {name.split(".")[0] for name in names} & FORBIDDEN_ON_FLOOR_0 == set()
    assert {module_of(name) for name in names} - {None} <= FLOOR_0 | {"__version__"}


@pytest.mark.parametrize(("module", "path"), floor_1_files(), ids=lambda value: getattr(value, "name", value))
def test_floor_1_imports_only_downwards(module, path):
    names = imports_of(path)
    roots = {name.split(".")[0] for name in names}
    assert roots & (FORBIDDEN_ON_FLOOR_1 | {"serve", "jobs"}) == set()
    for other in {module_of(name) for name in names} - {None, module, "__version__"} - FLOOR_0:
        assert (module, other) in SIDEWAYS, f"{module} imports {other}"


@pytest.mark.parametrize("path", files_of("phf_ray/pipelines", "serve"), ids=lambda path: path.name)
def test_floor_2_imports_no_job_and_not_its_sibling(path):
    names = imports_of(path)
    own_is_serve = path.is_relative_to(ROOT / "serve")
    for name in names:
        assert name.split(".")[0] != "jobs", name
        assert not (own_is_serve and name.startswith("phf_ray.pipelines")), name
        assert own_is_serve or name.split(".")[0] != "serve", name


@pytest.mark.parametrize("path", files_of("phf_ray", "serve", "jobs"), ids=lambda path: path.name)
def test_only_runs_touches_the_tracker_and_nothing_imports_a_bare_serve(path):
    names = imports_of(path)
    assert path.name == "runs.py" or not any(name.split(".")[0] == "wandb" for name in names)
    assert "serve" not in names


@pytest.mark.parametrize(
    "module", ["phf_ray.config", "phf_ray.records", "phf_ray.checkpoint", "serve.schemas", "jobs.cli"]
)
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'ray', 'transformers', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"
