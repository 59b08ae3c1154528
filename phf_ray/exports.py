"""Exports of a package that load nothing until somebody uses them: `import phf_ray.objectives` loads no torch."""

import importlib
from collections.abc import Mapping
from typing import Any


def load_export(package: str, exports: Mapping[str, str], name: str) -> Any:
    """The value of `package.name`, from the submodule that `exports` gives for it. For a package's `__getattr__`."""
    if name not in exports:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{package}.{exports[name]}"), name)
