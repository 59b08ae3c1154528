"""What jobs print of the sources of a corpus and of their licences."""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phf_ray.corpus.sources import Source


log = logging.getLogger("phf_ray")


def print_planned_sources(sources: "Mapping[str, Source]") -> None:
    from phf_ray.corpus.sources import described
    from phf_ray.storage.licenses import license_warning, licenses_of

    for source, one in sources.items():
        print(f"{source}: {one.name}{'' if one.license is None else f', licence {one.license}'}")
    warning = license_warning(licenses_of(described(sources)))
    if warning:
        print(f"warning: {warning}")


def print_licenses(sources: Sequence[Mapping[str, str]]) -> None:
    """`sources`: those of a manifest."""
    from phf_ray.storage.licenses import license_facts, licenses_of

    facts = license_facts(licenses_of(sources))
    if "licenses" in facts:
        print(f"licence of the sources: {', '.join(facts['licenses'])}")
    for warning in facts.get("warnings", ()):
        log.warning("%s", warning)
