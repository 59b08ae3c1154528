"""Says where a scorer's class comes from. That is part of its identity if the class is not from this package.

This package's own scorers are identified by the versions of the libraries that do the work, and by their `version` if
they have one. A class from outside can change any day; the version of its distribution shows the change, or else the
hash of its source.
"""

import hashlib
import inspect
import json
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING

from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.scorers.base import Scorer


def is_outside(scorer: type["Scorer"]) -> bool:
    return not scorer.__module__.startswith("phf_ray.scorers.")


def config_name(scorer: type["Scorer"]) -> str:
    """Return the class's name in configurations: `PEP8Scorer`, or `my_module:MyScorer` from outside this package."""
    return f"{scorer.__module__}:{scorer.__name__}" if is_outside(scorer) else scorer.__name__


@cache
def versions_of_code(scorer: type["Scorer"]) -> dict[str, str]:
    """Return versions that change with the code of the class.

    The class's `version`, if it has one, is under the class's name. For a class from outside this package, the version
    of its distribution is under the distribution's name. If there is none, `sha256:...` of the module's source is under
    the module's name.

    Raises ConfigError if a module from outside is in no distribution and has no source.
    """
    own = {} if scorer.version is None else {config_name(scorer): scorer.version}
    if not is_outside(scorer):
        return own
    return own | (_installed(scorer.__module__) or {scorer.__module__: _source_hash(scorer)})


def _installed(module: str) -> dict[str, str]:
    """Return distribution -> version of the module. Skips editable installs: their code changes without a version."""
    names = packages_distributions().get(module.partition(".")[0], ())
    return {name: distribution(name).version for name in sorted(set(names)) if not _is_editable(name)}


def _is_editable(name: str) -> bool:
    about = json.loads(distribution(name).read_text("direct_url.json") or "{}")
    return bool(about.get("dir_info", {}).get("editable"))


def _source_hash(scorer: type["Scorer"]) -> str:
    try:
        source = inspect.getsourcefile(scorer)
        content = Path(source or "").read_bytes()
    except (TypeError, OSError) as error:
        raise ConfigError(
            f"the source of {config_name(scorer)} can't be read ({error}), so changes to it would go unnoticed; "
            "put the class into a .py file, or install its module as a package with a version"
        ) from None
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
