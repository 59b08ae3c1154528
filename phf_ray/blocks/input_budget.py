"""Adds up what can't be read of data sets without scores, and stops the build if it is too much."""

from collections.abc import Iterable

from phf_ray.blocks.plan import BlockPlan, contributions
from phf_ray.corpus.budget import rejected_records, unread_files
from phf_ray.corpus.stats import CorpusStats
from phf_ray.errors import IncompleteError


class InputBudget:
    """What was read of each data set without scores. Scored corpora were judged when they were scored."""

    def __init__(self, plan: BlockPlan):
        self._plan = plan
        # By the data set's number in the plan.
        self.read = {place: CorpusStats() for place, corpus in enumerate(plan.corpora) if corpus.unscored is not None}

    def add(self, groups: Iterable[int]) -> None:
        """Count finished groups."""
        counted = [group for group in groups if self._plan.groups[group].corpus in self.read]
        for group, contribution in zip(counted, contributions(self._plan, counted), strict=True):
            place = self._plan.groups[group].corpus
            self.read[place].merge(CorpusStats.from_json(contribution["read"]))

    def judge(self, *, final: bool) -> None:
        """Raise IncompleteError if more than `scoring.max_failed_fraction` of a data set could not be read."""
        limit = self._plan.max_failed_fraction
        for place, stats in self.read.items():
            corpus = self._plan.corpora[place]
            assert corpus.unscored is not None
            files = {"num_files": corpus.unscored.num_files, "num_bytes": corpus.unscored.num_bytes}
            found = unread_files(stats, **files, limit=limit) or rejected_records(stats, limit=limit, final=final)
            if found is not None:
                raise IncompleteError(
                    f"data set {corpus.name}: {found}, more than scoring.max_failed_fraction={limit}; they are listed "
                    f"in {self._plan.root}/rejected-*.parquet; fix the input, or raise that fraction to continue"
                )
