"""Judging in this process, as users of AlpacaFarm and AlpacaEval know it; no Ray.

Rows come as a list of dicts, a DataFrame or a data set of `datasets`, and go as a list of dicts.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.alpaca_arguments import refuse_theirs
from phf_ray.judging.annotators import Annotator
from phf_ray.judging.budget import Budget
from phf_ray.judging.desk import DeskSettings, StoreDesk, default_cache, endpoints_of
from phf_ray.judging.failures import MAX_FAILED_FRACTION, FailureLimit, always_the_same, check_fraction
from phf_ray.judging.importing import find_known, known_key, rows_of_array
from phf_ray.judging.noise import check_noise
from phf_ray.judging.pairs import BOTH_COLUMNS, INPUT_KEYS, NOT_PARSED, OLD_TIE, Judgement, Pair, pair_of, unique_pairs
from phf_ray.judging.pool import load_pool
from phf_ray.judging.question import Asker
from phf_ray.judging.samples import Row, pairs_of_samples, pairs_of_two
from phf_ray.judging.served_scorers import identified, scorers_of
from phf_ray.judging.steps import JudgingOptions, Steps, judge_pairs
from phf_ray.judging.waiting import wait_for
from phf_ray.measures import win_rate
from phf_ray.storage.files import write_text

log = logging.getLogger(__name__)

DEFAULT_POOL = "alpaca_farm"


class PairwiseAutoAnnotator:
    """A pool of simulated annotators, with the methods and arguments of AlpacaFarm's class.

    Judgements are remembered, so that a pair that was judged once is not judged again (`is_avoid_reannotations`);
    labels that noise gave are not. Every answer of a judge behind a URL is kept in the folder `caching_path`, which
    other processes and `phf annotate` may use at the same time.
    """

    def __init__(
        self,
        annotators_config: str | Path | Mapping[str, Any] = DEFAULT_POOL,
        seed: int = 0,
        *,
        p_label_flip: float | None = None,
        is_avoid_reannotations: bool = True,
        asker: Asker | None = None,
        **settings: Any,
    ):
        """Load a pool: the name of a shipped one, a file, or a mapping. Checks it; builds the judges when first used.

        asker: in place of a store of its own.

        settings: `max_failed_fraction`, `in_flight`, `caching_path` or `saving_path` ("auto": that of `phf annotate`;
        None: nothing is kept), `budget` (5.00, or "200000 tokens"), and values in place of the pool's own: `url`,
        `model`, `key_env`, `tokenizer`. Raises ConfigError for a pool that can't be used, and for a setting that does
        not exist.
        """
        refuse_theirs(settings)
        self._cache = settings.pop("saving_path", "auto")
        self._cache = settings.pop("caching_path", self._cache)
        budget = settings.pop("budget", None)
        self._budget = None if budget is None else Budget.parse(str(budget))
        self.max_failed_fraction = check_fraction(float(settings.pop("max_failed_fraction", MAX_FAILED_FRACTION)))
        in_flight = settings.pop("in_flight", None)
        self.pool = load_pool(annotators_config, over=settings)
        self.in_flight = self.pool.in_flight if in_flight is None else int(in_flight)
        self.seed = seed
        self.p_label_flip: float = check_noise(p_label_flip)
        self.is_avoid_reannotations = is_avoid_reannotations
        self._asker = asker
        self._desk: StoreDesk | None = None
        self._built: dict[str, Annotator] | None = None
        self._known: dict[tuple[str, Pair], Judgement] = {}

    def annotate_pairs(self, to_annotate: Any) -> list[Row]:
        """Judge rows with instruction, perhaps input, output_1 and output_2. Later copies of a pair are left out.

        Returns the rows with `annotator`, `preference` (1 to 2; None with an `error`) and what the judgement cost.
        Raises IncompleteError if too many rows get no judgement.
        """
        rows, pairs = unique_pairs(as_rows(to_annotate))
        if not rows:
            return []
        if self._built is None:
            self.pool = identified(self.pool)
            self._built = self.pool.build(seed=self.seed)
        if self._asker is None and (self.pool.endpoints or self.pool.score_servers):
            self._asker = self._desk = self._opened()
        limit = FailureLimit(self.max_failed_fraction, num_rows=len(rows))

        def report(index: int, judgement: Judgement) -> None:
            if judgement.source == "judge" and judgement.error is None:
                self._known[judgement.annotator, pairs[index]] = judgement
            limit.add(judgement)

        options = JudgingOptions(
            asker=self._asker,
            known=self._recall if self.is_avoid_reannotations else None,
            in_flight=self.in_flight,
            report=report,
        )
        judgements = wait_for(self._judged(self._built, pairs, options))
        for warning in always_the_same(judgements):
            log.warning("%s", warning)
        if limit.counts:
            log.warning("%d of %d rows have no judgement: %s", limit.counts.total(), len(rows), limit.summary())
        return [{**row, **judgement.as_row()} for row, judgement in zip(rows, judgements, strict=True)]

    def annotate_samples(
        self,
        all_outputs: Any,
        *,
        keys_to_sample_output_2: Sequence[str] | None = None,
        is_unique_instructions: bool = True,
        p_label_flip: float | None = None,
        is_multisample_list: bool = True,  # noqa: ARG002  AlpacaFarm's; a row says itself whether it has a list
    ) -> list[Row]:
        """Pair the samples of each instruction by a random derangement, and judge the pairs.

        p_label_flip: noise of this call alone.
        """
        rows = pairs_of_samples(
            as_rows(all_outputs),
            keys=keys_to_sample_output_2 or INPUT_KEYS,
            is_unique_instructions=is_unique_instructions,
            seed=self.seed,
        )
        before = self.p_label_flip
        if p_label_flip is not None:
            self.set_noise(p_label_flip)
        try:
            return self.annotate_pairs(rows)
        finally:
            self.p_label_flip = before

    def annotate_head2head(
        self, outputs_1: Any, outputs_2: Any, *, keys_to_merge: Sequence[str] = INPUT_KEYS, is_ordered: bool = False
    ) -> list[Row]:
        """Judge the outputs of two models to the same instructions: output_1 of the first, output_2 of the second."""
        return self.annotate_pairs(
            pairs_of_two(as_rows(outputs_1), as_rows(outputs_2), keys=keys_to_merge, is_ordered=is_ordered)
        )

    def set_noise(self, p_label_flip: float | None) -> None:
        """Set the share of labels that are wrong; None: none."""
        self.p_label_flip = check_noise(p_label_flip)

    def save(self, path: str | Path) -> None:
        """Write what is remembered as a JSON array of rows."""
        rows = [
            {
                "instruction": pair.instruction,
                "input": pair.input,
                "output_1": pair.output_1,
                "output_2": pair.output_2,
                **judgement.as_row(),
            }
            for (_, pair), judgement in self._known.items()
        ]
        write_text(path, json.dumps(rows, ensure_ascii=True, indent=1))

    def load_(self, path: str | Path) -> None:
        """Remember the judgements of a file that `save` wrote, or AlpacaFarm's or AlpacaEval's `annotations.json`."""
        rows = rows_of_array(path, remedy="a file that save() wrote, or an annotations.json")
        for number, row in enumerate(rows, start=1):
            judgement = _remembered(row, number=number)
            if judgement is not None:
                self._known[judgement.annotator, pair_of(row, number=number)] = judgement

    def _recall(self, annotator: str, pair: Pair) -> Judgement | None:
        found = self._known.get((annotator, pair))
        if found is not None:
            # It costs nothing this time.
            return replace(found, source="stored", price=None, seconds=None)
        if self._desk is None:
            return None
        key = known_key(annotator, pair)
        return find_known(self._desk.store, {key: annotator}).get(key)

    def _opened(self) -> StoreDesk:
        if self._cache is None:
            self._forgotten = tempfile.TemporaryDirectory(prefix="phf-judgements-")
        folder = self._forgotten.name if self._cache is None else self._cache
        cache = default_cache() if folder == "auto" else str(folder)
        return StoreDesk(DeskSettings(cache, endpoints_of(self.pool), self._budget, scorers_of(self.pool)))

    async def _judged(
        self, built: Mapping[str, Annotator], pairs: Sequence[Pair], options: JudgingOptions
    ) -> list[Judgement]:
        steps = Steps(self.pool, seed=self.seed, p_label_flip=self.p_label_flip)
        try:
            return await judge_pairs(steps, built, pairs, options)
        finally:
            # Connections belong to this event loop, which ends with the call.
            if self._desk is not None:
                await self._desk.close()


def alpaca_leaderboard(
    path_or_all_outputs: Any,
    name: str = "Current method",
    *,
    reference: Any,
    annotators_config: str | Path | Mapping[str, Any] = DEFAULT_POOL,
    annotator: PairwiseAutoAnnotator | None = None,
    is_print_metrics: bool = False,
    **settings: Any,
) -> list[Row]:
    """Judge a model's outputs (answer 2) against those of a reference (answer 1), without noise.

    path_or_all_outputs: rows with instruction, perhaps input, and output, or the path of a JSON array of them; or
    {name: such rows} for several models. reference: such rows or a path. annotator: in place of a new one of
    `annotators_config` with `settings`.

    Returns one row per model, the best first: name, win_rate, standard_error (percent; AlpacaFarm's),
    clustered_standard_error (rows of one prompt are one draw), n_total, n_wins, n_wins_base, n_draws, n_failed and
    avg_length in characters.
    """
    judge = annotator or PairwiseAutoAnnotator(annotators_config, **settings)
    named = path_or_all_outputs if isinstance(path_or_all_outputs, Mapping) else {name: path_or_all_outputs}
    before = judge.p_label_flip
    judge.set_noise(None)
    try:
        table = [_standing(model, judge.annotate_head2head(reference, outputs)) for model, outputs in named.items()]
    finally:
        judge.p_label_flip = before
    table.sort(key=lambda row: (row["win_rate"] is None, -(row["win_rate"] or 0)))
    if is_print_metrics:
        for row in table:
            log.info("%s", row)
    return table


def _standing(model: str, rows: Sequence[Row]) -> Row:
    preferences = [row["preference"] for row in rows]
    measured = win_rate(preferences)
    clustered = win_rate(preferences, clusters=[(row["instruction"], row.get("input")) for row in rows])
    lengths = [len(row["output_2"]) for row in rows]
    return {
        "name": model,
        "win_rate": measured.win_rate,
        "standard_error": measured.standard_error,
        "clustered_standard_error": clustered.standard_error,
        "n_total": measured.n_total,
        "n_wins": measured.n_wins,
        "n_wins_base": measured.n_wins_base,
        "n_draws": measured.n_draws,
        "n_failed": sum(preference is None for preference in preferences),
        "avg_length": int(sum(lengths) / len(lengths)) if lengths else None,
    }


def as_rows(given: Any) -> list[Row]:
    """Return rows as dicts, from a list of them, a DataFrame, a data set of `datasets`, or the path of a JSON array."""
    if isinstance(given, str | Path):
        try:
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{given} can't be read as a JSON array of rows: {error}") from None
    if hasattr(given, "columns") and hasattr(given, "to_dict"):  # a DataFrame
        given = given.to_dict("records")
    elif hasattr(given, "to_list"):
        given = given.to_list()
    rows = list(given) if isinstance(given, Iterable) and not isinstance(given, Mapping | str) else None
    if rows is None or not all(isinstance(row, Mapping) for row in rows):
        raise ConfigError(
            f"rows are a {type(given).__name__}; give a list of dicts, a DataFrame, a data set of `datasets`, or the "
            "path of a JSON array"
        )
    return [{key: None if _is_missing(value) else value for key, value in row.items()} for row in rows]


def _is_missing(value: Any) -> bool:
    """Whether it is the NaN that a DataFrame has where there is nothing."""
    return isinstance(value, float) and value != value


def _remembered(row: Mapping[str, Any], *, number: int) -> Judgement | None:
    """The judgement of a stored row; None if it has none. AlpacaEval stores -1 where it could not read an answer."""
    preference, name = row.get("preference"), row.get("annotator")
    if preference in (None, NOT_PARSED):
        return None
    if isinstance(preference, bool) or not (preference == OLD_TIE or _is_preference(preference)):
        raise DataError(f"row {number}: preference {preference!r} is not 0 (AlpacaFarm's old tie) or between 1 and 2")
    if not isinstance(name, str):
        raise DataError(f"row {number}: annotator {name!r} is no name; nobody knows who judged")
    raw = row.get("raw", row.get("raw_completion"))
    order = row.get("order")
    both = (row.get(BOTH_COLUMNS[0]), row.get(BOTH_COLUMNS[1]))
    if order not in (None, "12", "21", "both") or not all(one is None or _is_preference(one) for one in both):
        raise DataError(
            f"row {number}: order {order!r}, {' and '.join(BOTH_COLUMNS)} {both!r:.80}: an order is 12, 21 or both, "
            "and with both each preference is between 1 and 2, or null"
        )
    return Judgement(
        name,
        1.5 if preference == OLD_TIE else float(preference),
        source="stored",
        order=order,
        raw=raw,
        in_both_orders=both if order == "both" else None,
    )


def _is_preference(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and 1 <= value <= 2
