"""What jobs print of the sources of a corpus and of their licences."""

import logging
from collections.abc import Mapping, Sequence

from phf_ray.corpus.sources import Source, described
from phf_ray.storage.licenses import license_facts, license_warning, licenses_of

log = logging.getLogger("phf_ray")


def print_planned_sources(sources: Mapping[str, Source]) -> None:
    for source, one in sources.items():
        print(f"{source}: {one.name}{'' if one.license is None else f', licence {one.license}'}")
    warning = license_warning(licenses_of(described(sources)))
    if warning:
        print(f"warning: {warning}")


def print_licenses(sources: Sequence[Mapping[str, str]]) -> None:
    """`sources`: those of a manifest."""
    facts = license_facts(licenses_of(sources))
    if "licenses" in facts:
        print(f"licence of the sources: {', '.join(facts['licenses'])}")
    for warning in facts.get("warnings", ()):
        log.warning("%s", warning)
