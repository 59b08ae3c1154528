"""Opens the data sets of a training: scored corpora and, where no setting reads scores, any text."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from phf_ray.config import Config
from phf_ray.corpus.columns import table_columns
from phf_ray.corpus.find import InputFile
from phf_ray.corpus.layout import OWN_KEYS, has_ours
from phf_ray.corpus.reader import find_tables, read_corpus
from phf_ray.corpus.stored import StoredCorpus, open_corpora
from phf_ray.corpus.streams import UNREADABLE
from phf_ray.corpus.unscored import find_text, open_text, read_text
from phf_ray.errors import ConfigError
from phf_ray.records import Rejected, ScoredDocument
from phf_ray.storage.data_sets import open_source
from phf_ray.storage.files import store_errors

_THREADS = 8
_BYTES_PER_TOKEN = 8
"""More than the mean of tokenizers on texts that they were made for, which is between 2 and 6."""


def has_scores(path: str) -> bool:
    """Whether a data set has scores: jobs.score_corpus wrote it, or its tables have columns `texts` and `scores`.

    The first table decides. A table that can't be read counts as one with scores, whose reader says what is wrong.
    """
    with store_errors(path):
        filesystem, root = open_source(path)
        if filesystem.isdir(root) and any(has_ours(filesystem, root, name) for name in OWN_KEYS):
            return True
    tables = find_tables(path)
    try:
        return bool(tables) and {"texts", "scores"} <= {*table_columns(tables[0])}
    except UNREADABLE:
        return True


def check_data_sets(config: Config, paths: Sequence[str]) -> list[tuple[InputFile, ...] | None]:
    """Return the files of each data set without scores, and None for each with scores. Reads no text.

    Raises ConfigError that names a data set without scores and the settings that need them.
    """
    with ThreadPoolExecutor(_THREADS) as threads:
        scored = list(threads.map(has_scores, paths))
    found = [
        None if is_scored else find_text(path, config.dataset) for path, is_scored in zip(paths, scored, strict=True)
    ]
    refuse_unscored(config, [path for path, is_scored in zip(paths, scored, strict=True) if not is_scored])
    return found


def refuse_unscored(config: Config, names: Sequence[str]) -> None:
    """Raise ConfigError if some setting reads scores. `names`: the data sets without scores."""
    if names and config.score_readers:
        need = f"{' and '.join(config.score_readers)} {'needs' if len(config.score_readers) == 1 else 'need'}"
        raise ConfigError(
            f"data set {', '.join(names)} has no scores, which {need}; score it "
            f"with `phf score-corpus --task TASK --input {' '.join(names)} --output DIR` and give DIR, or train with "
            "objective.name: MLE and no setting that reads scores"
        )


def open_data_sets(
    config: Config, paths: Sequence[str], *, memory: str | None = None, remembers: bool = False
) -> list[StoredCorpus]:
    """Open data sets, with and without scores. See `open_corpora`; raises what `check_data_sets` raises."""
    found = check_data_sets(config, paths)
    scored = [path for path, files in zip(paths, found, strict=True) if files is None]
    opened = iter(open_corpora(scored, memory=memory, remembers=remembers))
    return [
        next(opened)
        if files is None
        else open_text(
            path,
            files,
            settings=config.dataset,
            memory=memory,
            remembers=remembers,
            enough_bytes=_enough_bytes(config),
        )
        for path, files in zip(paths, found, strict=True)
    ]


def _enough_bytes(config: Config) -> int | None:
    """Return bytes of text, without other columns, that should hold the run's tokens: C4 need not be read whole."""
    if config.training.num_epochs is not None:
        return None
    num_tokens = config.training.num_tokens + config.dataset.skip_tokens
    return round(_BYTES_PER_TOKEN * num_tokens / (1 - config.dataset.held_out_fraction))


def read_data_set(config: Config, path: str, *, reject: Callable[[Rejected], None]) -> Iterator[ScoredDocument]:
    """Yield the documents of a data set, with or without scores."""
    if has_scores(path):
        yield from read_corpus(path)
    else:
        yield from read_text(find_text(path, config.dataset), settings=config.dataset, reject=reject)
