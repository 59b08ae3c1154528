"""The request of a scoring job: input, configuration and limits."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from phf_ray.config import Config
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.cut import shard_bytes
from phf_ray.corpus.find import Found, InputFile, find_files
from phf_ray.corpus.segments import ORIGINAL_SENTENCES, SEGMENTER_VERSIONS, segmenter_of, segmenter_versions
from phf_ray.corpus.sources import Source, with_license
from phf_ray.corpus.splits import some_names
from phf_ray.errors import ConfigError
from phf_ray.records import ScorerIdentity
from phf_ray.scorers.build import scorer_class, scorer_configs
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """The input, configuration and limits of a scoring job."""

    config: Config
    inputs: Sequence[str]
    limit: int | None = None
    """Maximum number of records in total."""
    text_column: str | None = None
    keep_columns: Sequence[str] = ()
    """Columns to put into the metadata of documents, besides id, meta and metadata."""
    shard_bytes: int | None = None
    """Bytes of text per shard; None: derived from the size of the corpus."""
    license: str | None = None
    """Licence of all inputs, in place of what their cards say."""

    def setup(self) -> ScoringSetup:
        return ScoringSetup(
            scorers=scorer_configs(self.config),
            segmenter=self._segmenter(),
            text_timeout_s=self.config.scoring.text_timeout_s,
        )

    def key(self) -> dict[str, Any]:
        """Return the settings that must not change when a job is resumed."""
        key: dict[str, Any] = {
            "scoring.scorers": [dict(scorer) for scorer in scorer_configs(self.config)],
            "scoring.segmenter": self.config.scoring.segmenter,
            "--limit": self.limit,
            "--text-column": self.text_column,
        }
        # Plans that were made before there were such keys lack them.
        if versions := segmenter_versions(self._segmenter()):
            key[SEGMENTER_VERSIONS] = versions
        if self.keep_columns:
            key["--keep-columns"] = sorted({*self.keep_columns})
        return key

    def setup_of(self, plan_key: Mapping[str, Any]) -> ScoringSetup:
        """Return the setup for a plan with this key: texts are cut as they were when the job began."""
        setup = self.setup()
        return replace(setup, segmenter=segmenter_of(setup.segmenter, plan_key.get(SEGMENTER_VERSIONS)))

    def _segmenter(self) -> str:
        name = self.config.scoring.segmenter
        return ORIGINAL_SENTENCES if name == "sentences" and self.config.original else name

    def find(self, known: Sequence[InputFile] = (), sources: Mapping[str, Source] | None = None) -> Found:
        """Find the input files. `known`, `sources`: those of an earlier plan, which stay what they are."""
        found = find_files(self.inputs, text_suffixes=self._text_suffixes(), known=known, sources=sources)
        if self.license is not None:
            found = replace(found, sources=with_license(found.sources, self.inputs, self.license))
        if found.ignored:
            others = ", ".join(
                f"{count} {suffix or 'without suffix'}" for suffix, count in found.ignored.most_common(5)
            )
            log.info("reading %d files; skipping files of other kinds: %s", len(found.files), others)
        if found.other_splits:
            log.info("reading the split to train on; leaving out %s", some_names(found.other_splits))
        if known and {file.name for file in found.files} <= {file.name for file in known}:
            return found  # they were looked at when the job began
        left_out = check_columns(found.files, text_column=self.text_column, keep=self.keep_columns)
        if left_out:
            log.info("columns that no document keeps: %s; --keep-columns puts them into meta", some_names(left_out))
        return found

    def _text_suffixes(self) -> frozenset[str] | None:
        """Return the suffixes of text files that all scorers can judge. None: any."""
        classes = [scorer_class(scorer["class_name"]) for scorer in scorer_configs(self.config)]
        limits = [frozenset(one.text_suffixes) for one in classes if one.text_suffixes is not None]
        return frozenset.intersection(*limits) if limits else None

    def target(self, files: Sequence[InputFile]) -> int:
        return self.shard_bytes or shard_bytes(sum(file.text_bytes for file in files))


def identify_scorers(request: ScoringRequest) -> tuple[ScorerIdentity, ...]:
    """Build every scorer once, in a separate process, so that configuration errors appear before any work starts."""
    process = ScoringProcess(request.setup())
    process.close()
    names = Counter(identity.name for identity in process.identities)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"two scorers are named {twice[0]!r}; give one of them another `name:`")
    return process.identities
