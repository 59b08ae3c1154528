"""Writes a checkpoint's README.md, for people and for a hub's search.

It states the training data, the method and the results.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from phf_ray.checkpoint import CheckpointInfo, read_info
from phf_ray.config import Config
from phf_ray.storage.data_set_names import hub_data_set
from phf_ray.storage.licenses import front_matter, license_warning

CARD_FILE = "README.md"

# Metrics of the run -> labels for readers. Sample and KL metrics have varying names, so their prefixes are listed.
_RESULTS = {
    "eval/bits_per_byte": "held-out bits per byte",
    "eval/bits_per_byte_joint": "held-out bits per byte, those of control tokens included",
    "eval/bits_per_byte_good": "held-out bits per byte after the good token",
    "eval/bits_per_byte_bad": "held-out bits per byte after the bad token",
    "train/loss": "training loss, nats per token",
    "objective/train/original_loss": "training likelihood loss, nats per token",
    "objective/eval/accuracy": "held-out accuracy",
    "objective/eval/calibration_error": "held-out calibration error",
    "objective/eval/accuracy_of_longer": "held-out accuracy of preferring the longer answer",
}
_PRETRAINED = (
    "A causal language model pretrained with human preferences ([Korbak et al. 2023](https://arxiv.org/abs/2302.08582))"
)
_KINDS = {
    "DPO": "A causal language model that learned from comparisons of answers ([Rafailov et al. 2023]"
    "(https://arxiv.org/abs/2305.18290))",
    "KTO": "A causal language model that learned from answers called good or bad ([Ethayarajh et al. 2024]"
    "(https://arxiv.org/abs/2402.01306))",
    "BradleyTerry": "A reward model, learned from comparisons of answers",
}
_FROM_ROLLOUTS = "A causal language model that learned from rewards of its own answers"
_REWARD_ROWS = {
    None: "the end-of-text token, the prompt, the answer and the end-of-text token",
    "trl": "what the tokenizer puts before a text, the prompt, the answer and the end-of-text token",
    "alpaca_farm": "what the tokenizer puts before a text, the prompt and the answer, without an end",
}
"""By `compat`, as phf-ray or the other system makes them."""
_PREFIXES = {"generation/": "samples: ", "KL/": "KL "}


def model_card(
    info: CheckpointInfo,
    *,
    config: Config,
    corpora: Sequence[str],
    metrics: Mapping[str, Any],
    checkpoint_path: str | None = None,
) -> str:
    """Return the card's text.

    `corpora`: names of the training corpora. `metrics`: the last value of each metric in the run's rows.
    `checkpoint_path`: the checkpoint that the run started from, if not from the configuration's weights.
    """
    objective = str(info.objective.get("name", "MLE"))
    method = _method(config, objective)
    title = f"{info.task or 'language model'}: {method}"
    results = _results(metrics)
    metadata = _metadata(info, config=config, title=title, results=results)
    if checkpoint_path is None:
        metadata |= _base_model(config)
    warning = license_warning(info.licenses)
    front = yaml.safe_dump(metadata, sort_keys=False)
    sections = [
        f"---\n{front}---\n",
        f"# {title}\n",
        f"{_kind(config, objective)} by phf-ray {info.versions.get('phf-ray', '')}, at step {info.step:,} "
        f"after {info.tokens_seen:,} tokens.\n",
        _use(info),
        *([f"**Warning**: {warning}.\n"] if warning else []),
        "## Training\n",
        _table(
            [
                *_training_rows(info, config=config, method=method, corpora=corpora),
                *([] if checkpoint_path is None else [("started from", _origin(checkpoint_path))]),
            ]
        ),
        "## Results\n",
        _table([(_label(name, config), f"{value:.4g}") for name, value in results.items()])
        if results
        else "None yet.\n",
    ]
    return "\n".join(sections)


def write_card(
    directory: Path,
    info: CheckpointInfo,
    *,
    config: Config,
    corpora: Sequence[str],
    metrics: Mapping[str, Any],
    checkpoint_path: str | None = None,
) -> None:
    text = model_card(info, config=config, corpora=corpora, metrics=metrics, checkpoint_path=checkpoint_path)
    (directory / CARD_FILE).write_text(text, encoding="utf-8")


def _kind(config: Config, objective: str) -> str:
    return _KINDS.get(objective, _PRETRAINED) if config.algorithm is None else _FROM_ROLLOUTS


def _method(config: Config, objective: str) -> str:
    if config.algorithm is not None:
        return config.algorithm.name
    if config.dataset.conditional_training_config is not None:
        return "conditional training"
    return "filtering" if config.dataset.filter_threshold is not None else objective


def _results(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and (name in _RESULTS or name.startswith(tuple(_PREFIXES)))
    }


def _label(name: str, config: Config) -> str:
    if name == "train/loss" and config.objective.compares_answers:
        return "training loss, nats per pair"
    if name == "train/loss" and config.objective.reads_labels:
        return "training loss per answer"
    for prefix, label in _PREFIXES.items():
        if name.startswith(prefix):
            return label + name.removeprefix(prefix)
    return _RESULTS[name]


def _metadata(info: CheckpointInfo, *, config: Config, title: str, results: Mapping[str, float]) -> dict[str, Any]:
    named = [hub_data_set(name) for name in config.dataset.datasets]
    data_sets = list(dict.fromkeys(one.place for one in named if one is not None and "/" in one.place))
    metadata: dict[str, Any] = {
        "library_name": "transformers" if info.base is None else "peft",
        "pipeline_tag": _pipeline(info),
        "tags": ["pretraining-with-human-preferences", *([info.task] if info.task else [])],
    }
    metadata |= front_matter(info.licenses)
    if data_sets:
        metadata["datasets"] = data_sets
    if results:
        data_set = {"name": "held-out documents and samples of the run", "type": data_sets[0] if data_sets else "local"}
        measured = [{"type": name, "name": _label(name, config), "value": value} for name, value in results.items()]
        result = {"task": {"type": _pipeline(info)}, "dataset": data_set, "metrics": measured}
        metadata["model-index"] = [{"name": title, "results": [result]}]
    return metadata


def _pipeline(info: CheckpointInfo) -> str:
    return "text-classification" if info.objective.get("name") == "BradleyTerry" else "text-generation"


def _base_model(config: Config) -> dict[str, str]:
    base = config.model.path_or_name
    return {} if config.model.from_scratch or base is None or not _is_hub_name(base) else {"base_model": base}


def _origin(checkpoint_path: str) -> str:
    """Describe a checkpoint from its own phf.json: its path means nothing to a reader elsewhere."""
    info = read_info(checkpoint_path)
    if info is None:
        return f"the weights of `{Path(checkpoint_path).name}`"
    of = ", ".join([*([info.task] if info.task else []), f"objective {info.objective.get('name', 'MLE')}"])
    return f"the weights of another run ({of}) at step {info.step:,}, after {info.tokens_seen:,} tokens"


def _is_hub_name(name: str) -> bool:
    """True for `owner/name`, false for a folder or URL: those mean nothing to a reader elsewhere."""
    return name.count("/") == 1 and ":" not in name and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _use(info: CheckpointInfo) -> str:
    if info.objective.get("name") == "BradleyTerry":
        load = "`AutoModelForSequenceClassification.from_pretrained` loads it without phf-ray; "
        if info.base is not None:
            load = (
                "It is a LoRA adapter with the head of a reward model: `PeftModel.from_pretrained` loads it onto "
                "`AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=1)`, whose embedding needs a row "
                "for each token (`resize_token_embeddings(len(tokenizer))`) and whose `config.pad_token_id` is the "
                "tokenizer's padding, or its end of text; `phf merge-adapter` makes a whole model of both; "
            )
        return f"{load}its one output is the reward. A row is {_REWARD_ROWS[info.feedback_compat]}.\n"
    load = "`AutoModelForCausalLM.from_pretrained` loads it without phf-ray."
    if info.base is not None:
        load = (
            "It is a LoRA adapter: `PeftModel.from_pretrained` loads it onto its base model, whose embedding needs a "
            "row for each token (`resize_token_embeddings(len(tokenizer))`); `phf merge-adapter` makes a whole "
            "model of both."
        )
    if info.control is None:
        begins = "the end-of-text token" if info.feedback_compat is None else "what the tokenizer puts before a text"
        return f"{load} A prompt begins with {begins}.\n"
    ban = "must not be sampled" if info.control.policy == "ban" else "is removed from samples"
    return (
        f"{load} A prompt begins with the end-of-text token and `{info.control.good}`, which asks for text that the "
        f"scorer rates well; `{info.control.bad}` marks text that it rates badly, and {ban}.\n"
    )


def _training_rows(
    info: CheckpointInfo, *, config: Config, method: str, corpora: Sequence[str]
) -> list[tuple[str, str]]:
    scorer, training = info.scorer or {}, config.training
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    rows = [
        ("data", ", ".join(corpora)),
        ("licence of the data", ", ".join(info.licenses) or "unknown"),
        ("method", method),
        ("objective", f"`{json.dumps(info.objective)}`"),
        ("thresholds", ", ".join(f"{name} {value:g}" for name, value in info.thresholds.items()) or "none"),
        ("scorer", f"{scorer['name']} ({scorer.get('unit', 'unit unknown')})" if "name" in scorer else "unknown"),
        ("tokens", f"{info.tokens_seen:,} ({training.count_tokens})"),
        ("sequences", _sequences(config)),
        (
            "learning rate",
            f"{training.learning_rate:g}, {training.lr_scheduler_type}, warm-up {training.warmup_ratio:g}",
        ),
        ("precision", training.precision),
        ("corpus hash", f"`{info.corpus_hash}`"),
        ("versions", versions),
    ]
    return [*rows, ("compat", info.compat)] if info.compat else rows


def _sequences(config: Config) -> str:
    rollouts = config.rollouts
    if rollouts is None:
        return f"{config.training.effective_batch_size} x {config.dataset.seq_length} tokens a step"
    steps = f"{rollouts.epochs} x {rollouts.minibatches} steps"
    return f"{rollouts.prompts_per_round} prompts x {rollouts.samples_per_prompt} answers a round, {steps}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {' '.join(text.split()).replace('|', chr(92) + '|')} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"
