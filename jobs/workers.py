"""Makes Ray's workers import phf-ray's packages, whatever folders are in the directory where the job started.

Ray 2.60 puts the driver's current directory first on its workers' import path, so a user's own `jobs/` or `serve/`
would hide phf-ray's. Workers therefore import phf-ray's packages before Ray changes the path.
"""

import importlib
from pathlib import Path

from phf_ray import logs

PACKAGES = ("phf_ray", "jobs", "serve")


def runtime_env() -> dict[str, object]:
    """Return a runtime environment that runs `set_up` in workers; empty if the current directory hides no package.

    Merge it after the one of `logs`. Ray has only one hook, so `set_up` does the work of `logs` too.
    """
    return {"worker_process_setup_hook": f"{__name__}.set_up"} if hides_ours(Path.cwd()) else {}


def hides_ours(folder: Path) -> bool:
    """Whether the folder has a module or folder named like a phf-ray package, and is not phf-ray's own folder."""
    ours = Path(__file__).resolve().parents[1]
    found = [path for name in PACKAGES for path in (folder / name, folder / f"{name}.py") if path.exists()]
    return bool(found) and folder.resolve() != ours


def set_up() -> None:
    for name in PACKAGES:
        importlib.import_module(name)
    logs.set_up_worker()
