"""Opens feedback corpora for a training, and checks that its objective can learn from them."""

import logging
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phf_ray.blocks.example_rows import ExampleSettings, FeedbackPart
from phf_ray.blocks.manifest import SourceCorpus
from phf_ray.config import BradleyTerryConfig, Config, KTOConfig, MLEConfig
from phf_ray.errors import ConfigError
from phf_ray.feedback.hindsight.learned_markers import learned_markers
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.feedback.manifest import FeedbackManifest
from phf_ray.feedback.reader import list_feedback_parts, read_feedback_manifest
from phf_ray.generation.chat import template_source, with_markers
from phf_ray.generation.chat.templates import COH
from phf_ray.records import ScoredDocument
from phf_ray.storage.files import full_name, open_filesystem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_TEMPLATES = {"text": "plain", "instruction": "alpaca", "messages": "hh", "conversation": "hh"}


@dataclass(frozen=True, slots=True)
class OpenFeedback:
    settings: ExampleSettings
    corpora: tuple[SourceCorpus, ...]
    parts: tuple[tuple[FeedbackPart, ...], ...]
    """Of each corpus."""


def check_feedback(config: Config, paths: Sequence[str]) -> list[FeedbackManifest]:
    """Return the manifest of each corpus that is feedback. The others are text that is learned beside it.

    Raises ConfigError if they are of several kinds, or not what the objective learns from.
    """
    if not any(is_feedback_corpus(path) for path in paths):
        if config.objective.compares_answers and paths:
            raise ConfigError(
                f"objective {config.objective.name} learns from comparisons, and {paths[0]} is no feedback "
                "corpus; make one with `phf prepare-feedback --input FILE --output DIR`"
            )
        if config.dataset.max_length is not None:
            raise ConfigError(
                f"dataset.max_length: {config.dataset.max_length} limits the examples of feedback, and "
                "dataset.datasets names none; remove it, dataset.seq_length is the length of the blocks"
            )
        if config.feedback_compat is not None:
            raise ConfigError(
                f"compat: {config.compat} is for feedback, and dataset.datasets names none; remove it, or make a "
                "feedback corpus with `phf prepare-feedback`"
            )
        return []
    others = [path for path in paths if not is_feedback_corpus(path)]
    if others:
        _check_text_beside(config, others)
    paths = [path for path in paths if path not in others]
    manifests = [read_feedback_manifest(path) for path in paths]
    forms = {(manifest.kind, manifest.form.prompts) for manifest in manifests}
    if len(forms) > 1:
        raise ConfigError(f"dataset.datasets has feedback corpora of several kinds: {sorted(forms)}; give those of one")
    for path, manifest in zip(paths, manifests, strict=True):
        _check_objective(config, path, manifest)
    if config.objective.reads_labels:
        _check_labels(config, manifests)
    return manifests


def _check_text_beside(config: Config, texts: Sequence[str]) -> None:
    """Check that texts can be learned beside feedback."""
    objective, dataset = config.objective, config.dataset
    unfit = None
    if not isinstance(objective, MLEConfig) or config.score_readers:
        unfit = f"objective {objective.name}"
        if config.score_readers:
            unfit = config.score_readers[0]
    elif config.compat not in (None, "coh"):
        unfit = f"compat: {config.compat}"
    if unfit is not None:
        raise ConfigError(
            f"dataset.datasets: {', '.join(texts)} is no feedback corpus, but others are, and {unfit} can't learn "
            "both; train on one kind after the other, the second run with --checkpoint-path"
        )
    if dataset.max_length is not None:
        raise ConfigError(
            f"dataset.datasets: {', '.join(texts)} is no feedback corpus, but others are, and dataset.max_length: "
            f"{dataset.max_length} limits examples alone; to learn it beside them, remove max_length and "
            "set dataset.seq_length to what the model can read"
        )


def open_feedback(
    config: Config, paths: Sequence[str], manifests: Sequence[FeedbackManifest], *, tokenizer: "PreTrainedTokenizerFast"
) -> OpenFeedback:
    """`manifests`: as `check_feedback` returned them. Raises ConfigError if there is no such template, or no room."""
    if isinstance(config.objective, KTOConfig):
        _warn_of_unequal_labels(config.objective, manifests)
    return OpenFeedback(
        settings=_settings(config, paths, manifests, tokenizer=tokenizer),
        corpora=tuple(
            SourceCorpus(
                name=posixpath.basename(path.rstrip("/")),
                fingerprint=manifest.fingerprint,
                scorer={},
                segmenter="none",
                sources=tuple(map(dict, manifest.sources)),
            )
            for path, manifest in zip(paths, manifests, strict=True)
        ),
        parts=tuple(feedback_parts(path) for path in paths),
    )


def feedback_set(config: Config, name: str) -> str | None:
    """Return the path of an evaluation set that is a feedback corpus; None for text.

    Raises ConfigError if its rows are not like those that are trained on.
    """
    source = config.dataset.eval_datasets[name]
    if not is_feedback_corpus(source):
        return None
    path = full_name(*open_filesystem(source))
    trained = [one for one in config.dataset.datasets if is_feedback_corpus(one)]
    if not trained:
        return path
    form, own = read_feedback_manifest(path).form, read_feedback_manifest(trained[0]).form
    if form != own:
        raise ConfigError(
            f"dataset.eval_datasets.{name}: {source} holds {form}, and {trained[0]} {own}; make both the same way"
        )
    return path


def words_of_feedback(path: str) -> Iterator[ScoredDocument]:
    """Yield the words of each row, to be compared with the training data."""
    for part in feedback_parts(path):
        yield from part.documents(lambda _: None)


def _check_objective(config: Config, path: str, manifest: FeedbackManifest) -> None:
    _check_rows(config, path, manifest)
    if manifest.form.has_control and config.dataset.conditional_training_config is None:
        raise ConfigError(
            f"{path} has answers behind control tokens; name them in dataset.conditional_training_config and "
            "tokenizer.special_tokens, as configs/alpaca/reward_conditioning.yml does"
        )
    if not manifest.form.has_control and config.dataset.conditional_training_config is not None:
        raise ConfigError(
            f"dataset.conditional_training_config names control tokens, but no answer of {path} stands behind one; "
            "make it with `phf prepare-feedback --to reward-conditioning`, or remove that section"
        )
    if not config.training.document_mask and config.compat != "coh":
        raise ConfigError(
            "training.document_mask: false, but several examples share a block, and none may see another; set it to "
            "true"
        )
    _check_compat(config, path, manifest)


def _check_compat(config: Config, path: str, manifest: FeedbackManifest) -> None:
    unknown = None
    if config.compat == "coh":
        unknown = (
            None if manifest.form.prompts == "fields" else f"rows but records with fields, and {path} holds others"
        )
    elif config.compat is not None and manifest.form.prompts == "fields":
        unknown = f"records with fields, which {path} holds"
    elif config.original is not None:
        unknown = "feedback"
    elif manifest.form.prompts == "conversation":
        unknown = f"conversations with several answers, which {path} holds"
    elif manifest.form.has_control:
        unknown = f"answers behind control tokens, which {path} holds"
    elif config.compat == "alpaca_farm" and config.objective.reads_labels:
        unknown = f"objective {config.objective.name}"
    if config.compat is not None and unknown is not None:
        raise ConfigError(f"compat: {config.compat} knows no {unknown}; remove it")


def _check_rows(config: Config, path: str, manifest: FeedbackManifest) -> None:
    """Check that the rows are what the objective learns from."""
    objective, kind = config.objective, manifest.kind
    if objective.compares_answers:
        if kind != "comparisons":
            raise ConfigError(
                f"objective {objective.name} learns from comparisons, but {path} holds {kind}; use objective MLE"
            )
    elif objective.reads_labels:
        if not manifest.form.has_label:
            raise ConfigError(
                f"objective {objective.name} learns from answers with a label, but {path} holds {kind} without; make "
                "them with `phf prepare-feedback --to kto` of comparisons, or of columns prompt, completion, label"
            )
        if config.dataset.learn != "completions":
            raise ConfigError(
                f"dataset.learn: {config.dataset.learn}, but objective {objective.name} judges answers; use completions"
            )
    elif not isinstance(objective, MLEConfig) or objective.mask_above is not None:
        readers = " and ".join(config.score_readers)
        raise ConfigError(f"{readers} needs scores, which feedback ({path}) has not; use MLE for examples, or DPO")
    elif kind == "comparisons":
        raise ConfigError(
            f"objective MLE learns from examples, but {path} holds comparisons; use objective DPO (or "
            "BradleyTerry, for a reward model), or make examples with `phf prepare-feedback "
            "--to sft` (or feedme, reward-conditioning)"
        )
    elif manifest.form.has_label:
        raise ConfigError(
            f"{path} holds good and bad answers with labels, and objective MLE would learn both alike; make examples "
            "with `phf prepare-feedback --to sft` or reward-conditioning, or use objective KTO"
        )


def _check_labels(config: Config, manifests: Sequence[FeedbackManifest]) -> None:
    good, bad = _labels(manifests)
    if not good or not bad:
        alike, count = ("good", good) if good else ("bad", bad)
        raise ConfigError(
            f"all {count} answers of {', '.join(config.dataset.datasets) or 'the corpora'} are labelled {alike}, and "
            f"objective {config.objective.name} learns from good and bad ones; add the others"
            + ("; for good answers alone, use objective MLE" if good else "")
        )


def _labels(manifests: Sequence[FeedbackManifest]) -> tuple[int, int]:
    marks = [manifest.stats.marks for manifest in manifests]
    return sum(one["label_true"] for one in marks), sum(one["label_false"] for one in marks)


def _warn_of_unequal_labels(objective: KTOConfig, manifests: Sequence[FeedbackManifest]) -> None:
    """Say which weights Eq. 8 of KTO recommends: together, the good answers weigh 1 to 4/3 of the bad ones."""
    good, bad = _labels(manifests)
    weighed = good * objective.desirable_weight / max(1e-9, bad * objective.undesirable_weight)
    is_one_sided = 0 in (objective.desirable_weight, objective.undesirable_weight)  # on purpose
    if not is_one_sided and not 0.99 < weighed < 4 / 3 + 0.01:
        wanted = bad * objective.undesirable_weight / good
        log.warning(
            "%d good and %d bad answers: together, the good ones weigh %.3g of the bad ones, and 1 to 1.33 is best; "
            "set objective.desirable_weight to %.3g to %.3g",
            good,
            bad,
            weighed,
            wanted,
            wanted * 4 / 3,
        )


def _settings(
    config: Config,
    paths: Sequence[str],
    manifests: Sequence[FeedbackManifest],
    *,
    tokenizer: "PreTrainedTokenizerFast",
) -> ExampleSettings:
    dataset, form = config.dataset, manifests[0].form
    name = dataset.prompt_template
    if form.prompts == "fields":
        if name is not None:
            raise ConfigError(
                f"dataset.prompt_template: {name}, but the records say their own words; remove it, and change the "
                "words with `phf prepare-feedback --phrases`"
            )
        # No row is made with it: it says how the trained model is asked.
        name = COH
    if name is None:
        name = "tokenizer" if tokenizer.chat_template else _TEMPLATES[form.prompts]
    text = template_source(name, tokenizer=tokenizer)
    if form.prompts == "fields":
        text = with_markers(text, learned_markers(paths[0], manifests[0]))
    conditional = dataset.conditional_training_config
    settings = ExampleSettings(
        kind=form.kind,
        template=str(Path(name).resolve()) if Path(name).is_file() else name,
        template_text=text,
        row_length=dataset.max_length or 0,
        learn=dataset.learn,
        good=None if conditional is None else conditional.aligned_prefix,
        bad=None if conditional is None else conditional.misaligned_prefix,
        has_labels=config.objective.reads_labels,
        has_mismatched=config.objective.reads_kl,
        margin=config.objective.margin_of_pairs,
        compat=config.feedback_compat,
        for_reward=config.feedback_compat is not None and isinstance(config.objective, BradleyTerryConfig),
        prompts=form.prompts,
    )
    num_rows = settings.rows_of_unit
    longest = dataset.seq_length // num_rows
    length = dataset.max_length or longest
    if length > longest:
        raise ConfigError(
            f"dataset.max_length: {length} x {num_rows} answers do not fit into a block of dataset.seq_length: "
            f"{dataset.seq_length}; raise seq_length to {length * num_rows}, or lower max_length"
        )
    return replace(settings, row_length=length)


def feedback_parts(path: str) -> tuple[FeedbackPart, ...]:
    """Return the files of a feedback corpus, in order."""
    found = []
    for part in list_feedback_parts(path):
        filesystem, inner = open_filesystem(part)
        found.append(FeedbackPart(part, int(filesystem.size(inner) or 0)))
    return tuple(found)
