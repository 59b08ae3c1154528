"""Lazy exports: a submodule loads when one of its names is used. `import phf_ray.objectives` loads no torch."""

import importlib
from collections.abc import Mapping
from typing import Any


def load_export(package: str, exports: Mapping[str, str], name: str) -> Any:
    """Return `package.name` from the submodule that `exports` lists for it. For use in a package's `__getattr__`.

    A room may hand on what is another's: `exports` then lists the whole name of the module, `phf_ray.objectives.kl`.
    """
    if name not in exports:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module = exports[name] if exports[name].startswith("phf_ray.") else f"{package}.{exports[name]}"
    return getattr(importlib.import_module(module), name)
