"""Finds the configurations that ship with the package by name: `pep8` is `configs/pep8/pretrain.yml`.

A clone has them in `configs/` at its top. A wheel has the same folder inside `phf_ray`.
"""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

from phf_ray.errors import ConfigError

SUFFIXES = (".yml", ".yaml")
_PACKAGE = Path(__file__).parents[1]
MAIN_TASKS = ("pretrain", "task")
"""Files that can be named by their folder alone, in order of precedence."""
_TASKS = (*MAIN_TASKS, "finetune")
"""Files in a task's folder that are tasks. All others are methods."""
_MODELS = "models"
"""Folder of the models' shapes."""
_ANNOTATORS = "annotators"
"""Folder of the pools of annotators."""
_PHRASES = "phrases"
"""Folder of the words of Chain of Hindsight."""
_PIPELINE = "pipeline"
"""File in a task's folder that runs its stages. It is no method."""
_OTHER_NAMES = {"finetuning": "finetune"}
"""Name of a file in the original code -> its name here."""


def shipped_folder() -> Path:
    installed = _PACKAGE / "shipped_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def is_path(text: str) -> bool:
    """Whether `text` is a path, not a name: it ends in .yml or .yaml, begins with /, ./ or ../, or is a file."""
    path = Path(text)
    return path.suffix in SUFFIXES or path.is_absolute() or text.startswith(("./", "../")) or path.is_file()


def task_path(task: str | Path) -> Path:
    """Return the file of a task: `pep8`, `pep8/finetune`, or a path, which is returned unchecked.

    Raises ConfigError for an unknown name.
    """
    if isinstance(task, Path) or is_path(task):
        return _existing(task)
    folder = shipped_folder()
    found = _first_file([*(folder / task / name for name in MAIN_TASKS), folder / task])
    if found is None:
        raise ConfigError(_unknown("task", task, task_names()))
    return found


def method_path(method: str | Path, *, task: Path) -> Path:
    """Return the file of a method: `conditional` (beside the task file), `pep8/conditional`, or a path.

    Raises ConfigError for an unknown name.
    """
    if isinstance(method, Path) or is_path(method):
        return _existing(method)
    found = _first_file([(shipped_folder() if "/" in method else task.parent) / method])
    if found is None:
        raise ConfigError(_unknown("method", method, method_names(task), beside=f" of {task}"))
    return found


def _existing(path: str | Path) -> Path:
    """Return the path, or the file that it means: shipped with the package, or known here by another name."""
    found = Path(shipped_or_own(str(path)))
    renamed = found.with_stem(_OTHER_NAMES.get(found.stem, found.stem))
    return renamed if not found.exists() and renamed.exists() else found


def model_path(model: str | Path) -> Path:
    """Return the file of a model's shape: `350m` is `configs/models/350m.yml`; or a path.

    Raises ConfigError for an unknown name.
    """
    return _shipped_file(model, _MODELS, what="model")


def pool_path(pool: str | Path) -> Path:
    """Return the file of a pool of annotators: `offline` is `configs/annotators/offline.yml`; or a path.

    Raises ConfigError for an unknown name.
    """
    return _shipped_file(pool, _ANNOTATORS, what="annotator pool")


def phrases_path(phrases: str | Path) -> Path:
    """Return the file of phrases of Chain of Hindsight: `coh` is `configs/phrases/coh.yml`; or a path.

    Raises ConfigError for an unknown name.
    """
    return _shipped_file(phrases, _PHRASES, what="file of phrases")


def _shipped_file(name: str | Path, folder: str, *, what: str) -> Path:
    if isinstance(name, Path) or is_path(name):
        return _existing(name)
    found = _first_file([shipped_folder() / folder / name])
    if found is None:
        names = sorted(path.stem for path in (shipped_folder() / folder).glob("*.yml"))
        raise ConfigError(_unknown(what, name, names))
    return found


def pipeline_path(pipeline: str | Path) -> Path:
    """Return the file of a pipeline: `rlhf` is `configs/rlhf/pipeline.yml`; or a path.

    Raises ConfigError for an unknown name.
    """
    if isinstance(pipeline, Path) or is_path(pipeline):
        return _existing(pipeline)
    found = _first_file([shipped_folder() / pipeline / _PIPELINE])
    if found is None:
        names = sorted(path.parent.name for path in shipped_folder().glob(f"*/{_PIPELINE}.yml"))
        raise ConfigError(_unknown("pipeline", pipeline, names))
    return found


def task_names() -> list[str]:
    folders = (folder for folder in shipped_folder().glob("*/") if folder.name not in (_MODELS, _ANNOTATORS, _PHRASES))
    return sorted(name for folder in folders for name in _tasks_in(folder))


def method_names(task: Path) -> list[str]:
    """Return the methods of a task file: all other files in its folder, except tasks."""
    return sorted(
        {path.stem for path in task.parent.glob("*") if path.suffix in SUFFIXES} - {*_TASKS, _PIPELINE, task.stem}
    )


def shipped_or_own(path: str) -> str:
    """Return `path`, or the shipped file if `path` begins with `configs/` and does not exist here.

    The shipped configurations name their prompt files that way, so they work from any working directory.
    """
    head, _, rest = path.partition("/")
    if head != "configs" or Path(path).exists():
        return path
    shipped = shipped_folder() / rest
    names = (shipped, shipped.with_stem(_OTHER_NAMES.get(shipped.stem, shipped.stem)))
    return next((str(name) for name in names if name.is_file()), path)


def _tasks_in(folder: Path) -> Iterator[str]:
    stems = {path.stem for path in folder.glob("*.yml")}
    if not stems.intersection(MAIN_TASKS):
        yield from (f"{folder.name}/{stem}" for stem in stems)
        return
    yield folder.name
    yield from (f"{folder.name}/{stem}" for stem in stems.intersection(_TASKS).difference(MAIN_TASKS))


def _first_file(stems: Iterable[Path]) -> Path | None:
    known = (stem.with_name(_OTHER_NAMES.get(stem.name, stem.name)) for stem in stems)
    candidates = (stem.with_name(stem.name + suffix) for stem in known for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _unknown(kind: str, name: str, names: list[str], *, beside: str = "") -> str:
    near = difflib.get_close_matches(name, names, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"there is no {kind} {name!r}{guess}; the {kind}s{beside} are {', '.join(names) or 'none'}; "
        f"a path works too, such as ./{name}.yml"
    )
