"""Keeps our packages ours in Ray's workers, whatever folders lie where the job was started.

Ray 2.60 puts the driver's current directory first on the path of its workers, where a user's own `jobs/` or `serve/`
would be found before ours. There, ours are loaded before Ray changes the path.
"""

import importlib
from pathlib import Path

from phf_ray import logs

PACKAGES = ("phf_ray", "jobs", "serve")


def runtime_env() -> dict[str, object]:
    """What Ray needs to set up workers as `set_up` says; empty if nothing in the current directory has our names.

    Goes after that of `logs`, of which it does the work too: Ray has one hook.
    """
    return {"worker_process_setup_hook": f"{__name__}.set_up"} if hides_ours(Path.cwd()) else {}


def hides_ours(folder: Path) -> bool:
    """Whether something in the folder has the name of a package of ours, and is not that package."""
    ours = Path(__file__).resolve().parents[1]
    found = [path for name in PACKAGES for path in (folder / name, folder / f"{name}.py") if path.exists()]
    return bool(found) and folder.resolve() != ours


def set_up() -> None:
    for name in PACKAGES:
        importlib.import_module(name)
    logs.set_up_worker()
