"""The manifest, which describes a scored corpus without reading it, and the data card written from the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from phf_ray.corpus.card_lines import front_lines, source_lines
from phf_ray.corpus.stats import CorpusStats, ScorerStats
from phf_ray.errors import ConfigError
from phf_ray.measures.histogram import Histogram


@dataclass(frozen=True, slots=True)
class CorpusManifest:
    """Description of a whole corpus, available without reading its parts."""

    scorers: tuple[dict[str, Any], ...]
    """`ScorerIdentity.to_json()` of each scorer. Training uses the first."""
    segmenter: str
    stats: CorpusStats
    fingerprint: str
    """Hash of ids, segments and scores of all documents, in order: equal hashes mean the same corpus."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Settings that decided the scores and the records that were read."""
    config_fingerprint: str = ""
    input_fingerprint: str = ""
    num_parts: int = 0
    segmenter_versions: Mapping[str, str] = field(default_factory=dict)
    """Package or rule -> version, for all that decide where the segmenter cuts."""
    sources: tuple[Mapping[str, str], ...] = ()
    """Data sets that the documents come from: `name`, with the commit on the hub, and `license`, each if known."""

    @property
    def scorer(self) -> dict[str, Any]:
        """Identity of the scorer of column `scores`; empty if the data set does not name it."""
        return self.scorers[0] if self.scorers else {}

    @property
    def is_scored(self) -> bool:
        """Whether there are scores: not for plain text, which is neither counted before it is packed."""
        return bool(self.stats.scorers)

    @property
    def documents(self) -> int:
        return self.stats.documents

    @property
    def segments(self) -> int:
        return self.stats.segments

    @property
    def characters(self) -> int:
        return self.stats.characters

    @property
    def rejected(self) -> Mapping[str, int]:
        return self.stats.rejected

    def scorer_stats(self, scorer: str | None = None) -> ScorerStats:
        """Return the statistics of the scorer with this name, by default of the one that training uses."""
        name = scorer or next(iter(self.stats.scorers), "")
        if name not in self.stats.scorers:
            raise ConfigError(f"no scorer {name!r} in this corpus; it has {', '.join(self.stats.scorers) or 'none'}")
        return self.stats.scorers[name]

    def to_json(self) -> dict[str, Any]:
        stats = self.stats.to_json()
        identities = {identity["name"]: identity for identity in self.scorers}
        for name, entry in stats["scorers"].items():
            entry["identity"] = identities.get(name)
            entry["quantiles"] = _quantile_table(self.stats.scorers[name])
        return {
            "format": 1,
            "scorer": self.scorer,
            "segmenter": self.segmenter,
            "segmenter_versions": dict(self.segmenter_versions),
            "fingerprint": self.fingerprint,
            "config_fingerprint": self.config_fingerprint,
            "input_fingerprint": self.input_fingerprint,
            "num_parts": self.num_parts,
            "sources": list(map(dict, self.sources)),
            "config": dict(self.config),
            "quantile_relative_error": round(Histogram.RATIO - 1, 6),
            **stats,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            scorers=tuple(entry["identity"] for entry in values["scorers"].values() if entry["identity"]),
            segmenter=values["segmenter"],
            stats=CorpusStats.from_json(values),
            fingerprint=values["fingerprint"],
            config=values["config"],
            config_fingerprint=values["config_fingerprint"],
            input_fingerprint=values["input_fingerprint"],
            num_parts=values["num_parts"],
            segmenter_versions=values.get("segmenter_versions", {}),
            sources=tuple(values.get("sources", ())),
        )


def _quantile_table(stats: ScorerStats) -> dict[str, dict[str, float]]:
    """Tabulate quantiles for human readers. Thresholds come from the histograms."""
    tables = {"segments": stats.segment_histogram, "documents": stats.document_histogram}
    fractions = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
    return {
        name: {str(fraction): histogram.quantile(fraction) for fraction in fractions}
        for name, histogram in tables.items()
        if histogram.count
    }


def data_card(manifest: CorpusManifest) -> str:
    """Return README.md of a corpus."""
    stats = manifest.stats
    lines = [
        *front_lines(manifest.sources),
        "",
        "# Scored corpus",
        "",
        f"{stats.documents:,} documents, {stats.segments:,} segments ({manifest.segmenter}), "
        f"{stats.characters:,} characters; {stats.rejected.total():,} records rejected.",
        "",
        *source_lines(manifest.sources),
        "Higher scores are worse. A segment that could not be scored has a null score and a reason.",
        "",
        "| scorer | unit | mean over segments | median | failed segments | truncated segments |",
        "|---|---|---|---|---|---|",
    ]
    for identity in manifest.scorers:
        scorer = stats.scorers[identity["name"]]
        histogram = scorer.segment_histogram
        median = f"{histogram.quantile(0.5):.6g}" if histogram.count else "-"
        mean = "-" if histogram.mean is None else f"{histogram.mean:.6g}"
        lines.append(
            f"| {identity['name']} | {identity['unit']} | {mean} | {median} | {scorer.failed.total():,} "
            f"| {scorer.truncated:,} |"
        )
    lines += [
        "",
        "| column | content |",
        "|---|---|",
        "| id | hash of source path, record and content |",
        "| texts | segments; joined, they give the document |",
        "| scores, errors | one of each per segment, from the first scorer |",
        "| avg_score | mean of the scores that are not null |",
        "| num_sents | number of segments |",
        "| meta | JSON: where the document came from |",
        "| scores__NAME, errors__NAME, avg_score__NAME | the same for the other scorers |",
        "",
        f"Fingerprint `{manifest.fingerprint}`. Versions, settings and distributions: manifest.json.",
    ]
    return "\n".join(lines) + "\n"
