"""Who may import whom, what must stay light, and that a name means one thing: the rules of docs/architecture.md."""

import ast
import importlib
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

PACKAGES = ("phf_ray", "serve", "jobs")
MAX_LINES = 500

GROUND = {
    "errors",
    "logs",
    "records",
    "checkpoint",
    "model_folder",
    "adapter_folder",
    "characters",
    "exports",
    "config",
    "storage",
    "measures",
    "http",
}
"""What every room may import. `phf_ray/__init__.py` belongs to it."""
EDGES = {
    "corpus": set(),
    "runs": set(),
    "objectives": set(),
    "models": {"objectives"},
    "generation": {"models"},
    "generation.chat": set(),
    "scorers": {"corpus.segments", "models", "generation.chat"},
    "scoring": {"corpus", "scorers"},
    "feedback": {"corpus", "generation.chat"},
    "blocks": {"corpus", "feedback", "scorers", "generation.chat"},
    "training": {"corpus", "blocks", "models", "objectives", "scorers", "runs"},
    "evaluation": {"corpus", "generation", "models", "scorers", "runs"},
    "judging": {"corpus", "feedback", "scorers", "generation", "evaluation.report"},
    "integrations": {"blocks", "models", "objectives"},
    "chat": {"generation.chat"},
    "serve": {"corpus", "generation", "models", "scorers", "runs"},
}
"""Room -> rooms that it may import besides the ground. Direct, not inherited; `a.b`: only that part of a room."""
EDGES["rollouts"] = {*EDGES} - {"serve", "chat"}

# Library -> where it may be imported, as prefixes of module names. Lazily imported counts, too.
RESERVED = {
    "wandb": ("phf_ray.runs.tracking",),
    "matplotlib": ("phf_ray.evaluation.report.plots",),
    "gradio": ("phf_ray.chat.page",),
    "jinja2": ("phf_ray.evaluation.report.page", "phf_ray.generation.chat"),
}
RAY = ("serve.app", "serve.deployments", "jobs.")
"""Besides every `on_ray`."""
FILES_OF_A_FOLDER_THAT_IS_RENAMED = (
    "phf_ray.checkpoint",
    "phf_ray.models.card",
    "phf_ray.training.snapshot",
    "jobs.fetch_models",
)
"""Write into a scratch folder, whose new name makes all of it appear at once. All others call `storage.files`."""
HEAVY = ("torch", "ray", "transformers", "pyarrow", "scipy", "sklearn", "matplotlib", "jinja2", "datasets")
LIGHT = {
    "phf_ray.config": (*HEAVY, "numpy"),
    "phf_ray.records": HEAVY,
    "phf_ray.checkpoint": HEAVY,
    "phf_ray.model_folder": HEAVY,
    "phf_ray.adapter_folder": HEAVY,
    "phf_ray.scorers": HEAVY,
    "phf_ray.scorers.pii": (*HEAVY, "scrubadub", "dateparser"),
    "phf_ray.scorers.toxicity": HEAVY,
    "phf_ray.scorers.huggingface": HEAVY,
    "phf_ray.blocks": HEAVY,
    "phf_ray.objectives": HEAVY,
    "phf_ray.models": HEAVY,
    "phf_ray.measures": HEAVY,
    "phf_ray.measures.calibration": HEAVY,
    "phf_ray.rollouts": HEAVY,
    "phf_ray.objectives.aggregation": HEAVY,
    "phf_ray.objectives.clipped_loss": HEAVY,
    "phf_ray.rollouts.generalized_advantage": HEAVY,
    "phf_ray.rollouts.group_baselines": HEAVY,
    "phf_ray.objectives.kl": HEAVY,
    "phf_ray.runs.directory": HEAVY,
    "phf_ray.generation.requests": HEAVY,
    "phf_ray.generation.chat": HEAVY,
    "phf_ray.generation.chat.templates": HEAVY,
    "phf_ray.generation.chat.jinja": tuple(name for name in HEAVY if name != "jinja2"),
    "phf_ray.feedback": HEAVY,
    "phf_ray.feedback.job": ("torch", "ray", "transformers", "jinja2", "datasets"),
    "phf_ray.chat.session": (*HEAVY, "gradio"),
    "phf_ray.evaluation.report.records": HEAVY,
    "serve.schemas": HEAVY,
    "serve.settings": HEAVY,
    "serve.deployments": ("torch", "transformers"),
    "jobs.cli": HEAVY,
}
"""Module -> what it must not load."""


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @property
    def room(self) -> str:
        """`phf_ray.scorers.pep8` -> `scorers`, `serve.api` -> `serve`."""
        parts = self.name.split(".")
        return parts[0] if parts[0] != "phf_ray" else parts[1] if len(parts) > 1 else "errors"

    @property
    def is_on_ray(self) -> bool:
        return "on_ray" in self.name.split(".")

    @property
    def tree(self) -> ast.Module:
        return _parsed(self.path)

    def imports(self, *, at_top: bool = False) -> Iterator[str]:
        """Modules that it imports, of ours as far as there is a file: `phf_ray.scorers.base`. `at_top`: when loaded."""
        known = modules()
        for node in self.tree.body if at_top else ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import"
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    yield whole if whole in known else str(node.module)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = Module(name, path)
    return found


def is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix.rstrip(".") or name.startswith(f"{prefix.rstrip('.')}.") for prefix in prefixes)


def allowed(module: Module, other: Module) -> bool:
    room, target = module.room, other.room
    if "jobs" in (room, target):
        return room == "jobs" or room == target
    if room == target or target in GROUND:
        return True
    edges = EDGES.get(room, set())
    return any(is_below(other.name.removeprefix("phf_ray."), (edge,)) for edge in edges)


ROOMS = sorted({module.room for module in modules().values()})


def of_room(room: str) -> list[Module]:
    return [module for module in modules().values() if module.room == room]


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "jobs"])
def test_a_room_imports_only_the_rooms_that_it_may(room):
    wrong = [
        f"{module.name} imports {other}"
        for module in of_room(room)
        for other in module.imports()
        if other in modules() and not allowed(module, modules()[other])
    ]
    assert not wrong, f"{room} may import {sorted(EDGES.get(room, ()))}"


def test_every_room_is_in_the_table_and_the_table_has_no_circle():
    rooms = {module.room for module in modules().values()} - {"jobs"}
    assert rooms <= {*GROUND, *EDGES}
    graph = {room: {edge.partition(".")[0] for edge in edges} - {room} for room, edges in EDGES.items()}
    # That part of a room which others may import alone.
    graph["generation.chat"] = set()
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {room for room, edges in graph.items() if room not in done and edges <= done | GROUND}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready


def test_no_module_imports_itself_by_way_of_others():
    graph = {
        name: {other for other in module.imports(at_top=True) if other in modules()}
        for name, module in modules().items()
    }
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " -> ".join([*path[path.index(name) :], name])
        if name not in state:
            state[name] = 1
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            state[name] = 2

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("room", ROOMS)
def test_libraries_stay_where_they_belong(room):
    for module in of_room(room):
        name, roots = module.name, {other.partition(".")[0] for other in module.imports()}
        for library, places in RESERVED.items():
            assert library not in roots or is_below(name, places), f"{name} imports {library}"
        assert "ray" not in roots or module.is_on_ray or is_below(name, RAY), f"{name} imports ray"
        if not is_below(name, ("jobs.",)):
            assert "argparse" not in roots, f"{name} reads a command line"


def _writes(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr in ("write_text", "write_bytes"):
        return True
    modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    return node.func.attr == "open" and any(str(mode).startswith(("w", "x")) for mode in modes)


def test_files_are_written_whole_by_the_one_writer():
    writers = {name for name, module in modules().items() if any(map(_writes, ast.walk(module.tree)))}
    assert writers == {"phf_ray.storage.files", *FILES_OF_A_FOLDER_THAT_IS_RENAMED}


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "jobs"])
def test_only_jobs_and_other_runners_import_a_runner_on_ray(room):
    for module in of_room(room):
        runners = [other for other in module.imports() if other in modules() and modules()[other].is_on_ray]
        assert not runners or module.is_on_ray, f"{module.name} imports {runners}"


@pytest.mark.parametrize("module", list(LIGHT))
def test_light_modules_load_nothing_heavy(module):
    code = f"import sys, {module}; print([m for m in {LIGHT[module]!r} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


@pytest.mark.parametrize("room", ["phf_ray.measures", "phf_ray.rollouts"])
def test_functions_on_numbers_load_no_torch_when_used(room):
    code = (
        f"import sys, {room} as room; [getattr(room, name) for name in room._EXPORTS]; "
        "print(len(room._EXPORTS) > 5, [m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "True []"


def test_no_file_has_the_name_of_something_that_its_room_exports():
    # Once the file is loaded, `from phf_ray.rollouts import gae` would give the file.
    found = 0
    for name, module in modules().items():
        exports = getattr(importlib.import_module(name), "_EXPORTS", {}) if module.path.name == "__init__.py" else {}
        assert not {f"{name}.{export}" for export in exports} & modules().keys()
        found += len(exports)
    assert found > 50


def test_a_public_class_name_means_one_thing():
    places = defaultdict(list)
    for module in modules().values():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(module.name)
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert not twice


def test_no_file_is_longer_than_a_reader_takes_in():
    sizes = {module.path: len(module.path.read_text(encoding="utf-8").splitlines()) for module in modules().values()}
    grown = {path: size for path, size in sizes.items() if size > MAX_LINES}
    assert not grown


def test_sizes_are_known(capsys):
    """Prints, for every room, its files and lines, and its longest file and function."""
    rooms = defaultdict(list)
    for module in modules().values():
        rooms[module.room if module.room not in GROUND or module.path.parent.name == module.room else "ground"].append(
            module
        )
    lines = [f"{'room':12} {'files':>5} {'lines':>6}  longest file, longest function"]
    functions: list[int] = []
    for room, members in sorted(rooms.items()):
        sizes = {module: len(module.path.read_text(encoding="utf-8").splitlines()) for module in members}
        found = Counter(
            {
                f"{module.name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
                for module in members
                for node in ast.walk(module.tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        )
        functions += found.values()
        file = max(sizes, key=lambda module: sizes[module])
        longest = "".join(f"{name} {size}" for name, size in found.most_common(1))
        lines.append(f"{room:12} {len(members):5} {sum(sizes.values()):6}  {file.name} {sizes[file]}, {longest}")
    above = sum(size > 50 for size in functions)
    lines.append(f"functions: {len(functions)}, median {statistics.median(functions):g} lines, {above} above 50")
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
    assert len(functions) > 1000
