"""What a user asks to be scored, and how."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phf_ray.config import Config
from phf_ray.corpus.columns import check_columns
from phf_ray.corpus.cut import shard_bytes
from phf_ray.corpus.find import InputFile, find_files
from phf_ray.errors import ConfigError
from phf_ray.records import ScorerIdentity
from phf_ray.scorers.build import scorer_configs
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """What a user asks to be scored, and how."""

    config: Config
    inputs: Sequence[str]
    limit: int | None = None
    """Records in all."""
    text_column: str | None = None
    shard_bytes: int | None = None
    """Text per shard; None: from the size of the corpus."""

    def setup(self) -> ScoringSetup:
        return ScoringSetup(
            scorers=scorer_configs(self.config),
            segmenter=self.config.scoring.segmenter,
            text_timeout_s=self.config.scoring.text_timeout_s,
        )

    def key(self) -> dict[str, Any]:
        """What must stay the same for a job to be resumed."""
        return {
            "scoring.scorers": [dict(scorer) for scorer in scorer_configs(self.config)],
            "scoring.segmenter": self.config.scoring.segmenter,
            "--limit": self.limit,
            "--text-column": self.text_column,
        }

    def find(self) -> tuple[InputFile, ...]:
        found = find_files(self.inputs)
        if found.ignored:
            others = ", ".join(
                f"{count} {suffix or 'without suffix'}" for suffix, count in found.ignored.most_common(5)
            )
            log.info("%d files are read; of other kinds and left out: %s", len(found.files), others)
        check_columns(found.files, text_column=self.text_column)
        return found.files

    def target(self, files: Sequence[InputFile]) -> int:
        return self.shard_bytes or shard_bytes(sum(file.text_bytes for file in files))


def identify_scorers(request: ScoringRequest) -> tuple[ScorerIdentity, ...]:
    """Builds every scorer once, in a process of its own, so errors of their configuration come before any work."""
    process = ScoringProcess(request.setup())
    process.close()
    names = Counter(identity.name for identity in process.identities)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ConfigError(f"two scorers are called {twice[0]!r}; give one of them another `name:`")
    return process.identities
