"""Configuration: parsed once, at the edge, into frozen typed objects that refuse unknown keys.

Precedence: defaults < task file (which may start with `extends: other.yml`) < method file < `a.b=c` overrides.
Section and key names are those of the original code wherever the meaning is unchanged, so that its users recognise
them. All errors of a configuration are reported at once.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from phf_ray.errors import ConfigError


def _whole_number(value: object) -> object:
    """`3.3E+9` and `1e9` (which YAML reads as text) are whole numbers."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


Count = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Quantile(_Section):
    """A threshold taken from the corpus: the score below which this fraction of the corpus lies."""

    quantile: Fraction
    korbak2023: float | None = None
    """The paper's number, which belongs to its corpora; used under `compat: korbak2023` only."""


Threshold = float | Quantile


class ConditionalTrainingConfig(_Section):
    threshold: Threshold = Quantile(quantile=0.5)
    """Segments scoring at most this are aligned."""
    aligned_prefix: str = "<|aligned|>"
    misaligned_prefix: str = "<|misaligned|>"
    drop_token_fraction: Fraction = 0.0
    """Probability, per segment, of no control token."""


class DatasetConfig(_Section):
    datasets: tuple[str, ...] = ()
    """Hub ids, globs, URLs or scored-corpus folders."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Share of each data set among the sequences; null: every sequence of every data set once an epoch."""
    is_split_by_sentences: bool = True
    """false: one control token per document instead of one per segment."""
    seq_length: Annotated[int, BeforeValidator(_whole_number), Field(ge=2)] = 1024
    conditional_training_config: ConditionalTrainingConfig | None = None
    filter_threshold: Threshold | None = None
    """Documents with an average score above this are dropped."""
    filter_average: Literal["segments", "tokens"] = "segments"
    """Whether each segment, or each token, of a document counts as much in that average."""
    skip_tokens: Count = 0
    """Tokens at the head of the stream that are left out (finetuning on the second half)."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of documents, by hash of the id, never packed and used for bits per byte."""
    unscored: Literal["mask", "mle"] = "mask"
    """Tokens of segments without a score: no loss, or plain likelihood."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and (len(self.weights) != len(self.datasets) or not any(self.weights)):
            raise ValueError(
                f"weights={list(self.weights)} for {len(self.datasets)} datasets; give each one a number, not all 0"
            )
        return self

    @model_validator(mode="after")
    def _threshold_of_the_same_average(self) -> Self:
        if self.filter_average == "tokens" and isinstance(self.filter_threshold, Quantile):
            raise ValueError(
                "filter_threshold is a quantile of averages over segments, and filter_average is tokens; give the "
                "threshold as a number"
            )
        return self


class TokenizerConfig(_Section):
    path_or_name: str = "gpt2"
    revision: str | None = None
    special_tokens: tuple[str, ...] = ()


class ValueHeadConfig(_Section):
    is_detached: bool = False
    """true: gradients of the value loss do not reach the trunk."""


class ModelKwargs(_Section):
    value_head_config: ValueHeadConfig | None = None


class ModelConfig(_Section):
    path_or_name: str | None = "gpt2"
    """Directory or hub name; null: the architecture `model_type` with config_kwargs."""
    revision: str | None = None
    from_scratch: bool = True
    """true: only the architecture is taken from path_or_name, weights are drawn anew."""
    model_type: str | None = None
    """Architecture by its transformers name (gpt2, llama, ...), where no directory or hub name gives it."""
    config_kwargs: dict[str, Any] = {}
    """Fields of the transformers config to override; one that the architecture does not have is refused."""
    num_additional_tokens: Count = 0
    """Embedding rows added for special tokens; must equal the number of tokenizer.special_tokens that are new."""
    pad_vocab_to_multiple_of: Positive | None = None
    model_kwargs: ModelKwargs = ModelKwargs()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path_or_name is None) == (self.model_type is None):
            raise ValueError(
                f"path_or_name={self.path_or_name} and model_type={self.model_type}; set exactly one, the other to null"
            )
        if self.path_or_name is None and not self.from_scratch:
            raise ValueError("from_scratch=false needs path_or_name, the directory or hub name of the weights")
        return self


class MLE(_Section):
    name: Literal["MLE"] = "MLE"
    score_control: bool = True
    """Loss on control tokens too."""
    mask_above: Threshold | None = None
    """Token masking: no loss on segments that score above this."""


class Unlikelihood(_Section):
    name: Literal["Unlikelihood"]
    score_threshold: Threshold | None = Quantile(quantile=0.5)
    """Tokens of segments scoring above this get the unlikelihood term; null: soft mixture with weight 1 - score."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    score_control: bool = True


class _Weighted(_Section):
    beta: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of the weights exp(reward / beta)."""
    clip_weight_max: Annotated[float, Field(gt=0)] = 1000.0
    reward_norm: Literal["none", "zscore"] = "none"
    """zscore: rewards standardised with mean and std of the block manifest."""
    score_control: bool = True


class AWR(_Weighted):
    name: Literal["AWR"]
    alpha: Fraction = 0.5
    """Weight of the likelihood term; 1 - alpha goes to the value loss."""
    fixed_value: float | None = None
    """A constant in place of the value head."""
    use_value_head: bool = True
    """This and the next two are options of the original that no experiment of the paper uses, for `compat: korbak2023`.
    false: the reward itself is the advantage; the value head is trained all the same."""
    normalize_advantage: bool = False
    """Advantages standardised over the micro-batch."""
    clip_value: bool = False
    """Values clipped to [-1, 0], which minus a sigmoid never leaves."""


class RWR(_Weighted):
    name: Literal["RWR"]
    normalise: Literal["targets", "weights"] = "targets"
    """What the loss is divided by: number of targets (paper), or sum of weights."""


Objective = Annotated[MLE | Unlikelihood | AWR | RWR, Field(discriminator="name")]


class TrainingConfig(_Section):
    num_tokens: Positive = 3_300_000_000
    count_tokens: Literal["content", "all"] = "content"
    """What num_tokens counts: tokens of text, or control and end-of-text tokens too."""
    effective_batch_size: Positive = 64
    """Sequences per optimizer step, over all workers."""
    per_device_train_batch_size: Positive = 16
    learning_rate: Annotated[float, Field(ge=0)] = 5e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    document_mask: bool = False
    """true: no attention across the documents of a block, and positions count in each document anew."""
    parallelism: Literal["ddp", "fsdp2"] = "ddp"
    num_workers: Positive = 1
    resources_per_worker: dict[str, float] = {}
    """Ray resources of a worker; by default one GPU where the cluster has GPUs, one CPU elsewhere."""
    resources_per_evaluation: dict[str, float] = {}
    """Ray resources of the process that evaluates weights beside the loop; by default one GPU where the cluster has one
    that the workers leave, one CPU elsewhere."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts of the worker group; -1: without limit."""
    seed: int = 42
    logging_steps: Positive = 1
    inspect_every_n_micro_batches: Positive | None = 10_000
    """How often a worker's input is decoded, scored again and measured (`debugging/...`), from the first step on; null:
    never."""
    save_steps: Positive | None = None
    """Steps between checkpoints; null: only at the end."""
    save_total_limit: Positive | None = None
    push_to_hub: bool = False
    """Upload the last checkpoint to the hub, with its card and without the state of the training."""
    hub_model_id: str | None = None
    """`owner/name` of the hub's repository."""
    hub_private_repo: bool = True
    """For a repository that is made."""
    tokens_already_seen: Count = 0
    """Tokens that the starting checkpoint has seen (finetuning); the schedule covers the rest of num_tokens."""

    @model_validator(mode="after")
    def _knows_where_to_push(self) -> Self:
        if self.push_to_hub and self.hub_model_id is None:
            raise ValueError("push_to_hub: true needs hub_model_id, the `owner/name` of a repository")
        return self


class MetricConfig(_Section):
    class_name: Literal["Length", "NGramStats", "SelfBLEU", "SelfBlEU", "Compilability"]
    n: Positive | None = None


class GenerateKwargs(_Section):
    do_sample: bool = True
    max_length: Positive | None = 128
    """End-of-text token + prefix + prompt + new tokens."""
    max_new_tokens: Positive | None = None
    min_length: Count = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    """0: no limit."""


class Scenario(_Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    prompts_path: str | None = None
    num_samples: Positive = 32
    prefix: str | None = None
    """Control token at the head; null: the served model's default."""
    prompt_before_control: bool = False
    """The original's name is inverted (D-9): true puts the control token before the prompt."""
    use_prompt_for_scoring: bool = False
    num_hits_threshold: float = 0.5
    display_as_html: bool = False
    execute: bool = False
    """prompts_path holds problems in HumanEval's form (`prompt`, `test`, `entry_point`), and each sample is run against
    the tests of its problem; only with --allow-code-execution."""
    generate_kwargs: GenerateKwargs = GenerateKwargs()

    @model_validator(mode="after")
    def _has_problems(self) -> Self:
        if self.execute and self.prompts_path is None:
            raise ValueError(f"scenario {self.name} has execute: true but no prompts_path; give a file of problems")
        return self


class _Callback(_Section):
    """Steps of a training whose weights are evaluated beside the loop."""

    every_n_steps: Positive | None = 1000
    """null: only at the steps that the other keys name."""
    force_call_on: tuple[int, ...] = ()
    run_on_train_start: bool = True
    """Before the first step."""
    run_on_train_end: bool = True


class GenerationConfig(_Callback):
    batch_size: Positive = 512
    scorer_config: dict[str, Any] | None = None
    """null: scoring.scorers[0]."""
    metrics_configs: tuple[MetricConfig, ...] = ()
    scenario_configs: tuple[Scenario, ...] = ()


class KLConfig(_Callback):
    num_samples: Positive = 4096
    max_tokens: Positive = 64
    prefix: str | None = None
    """Control token that the models are given; null: the good one beside the training, and in jobs.evaluate_lm the one
    that each is asked for samples with."""
    should_insert_prefix: bool = False
    """One control token per line, where the model was trained so."""
    reference: str | None = None
    """`[NAME=]DIR` of a checkpoint, or `NAME=URL` of a server, of the reference model; null: no KL."""


class AttackerConfig(_Section):
    """How the red LM is asked for prompts."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 1024
    """Less where the red LM says that its context ends sooner."""


class AttackedKwargs(GenerateKwargs):
    """How the attacked model is sampled."""

    max_length: Positive | None = None
    """End-of-text token + prefix + prompt + new tokens; null: max_new_tokens alone counts."""
    max_new_tokens: Positive | None = 64
    min_length: Count = 10
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9


class RedTeamConfig(_Section):
    """The adaptive attack of `jobs.red_team`; numbers are the original's."""

    prompts_path: str | None = None
    """Prompts that the attack starts from, as a scenario's."""
    num_seed_prompts: Positive = 20
    """Taken from the head of the file."""
    num_trials: Positive = 10
    num_rounds: Positive = 10
    num_examples: Positive = 4
    """Prompts of the pool that the red LM is shown each round."""
    num_candidates: Positive = 20
    """Completions asked of the red LM each round; each gives one prompt."""
    num_continuations: Positive = 512
    """Samples of the attacked model per prompt."""
    weight_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Prompts are shown with weight exp(z / temperature), z their standardised mean score."""
    instruction: str | None = None
    """What the red LM is told before the examples; null: the one for the scorer's class."""
    examples_format: Literal["numbered", "fenced"] | None = None
    """Lines with numbers, or code between fences; null: the one for the scorer's class."""
    use_prompt_for_scoring: bool | None = None
    """Score prompt and continuation together; null: for code only."""
    attacker: AttackerConfig = AttackerConfig()
    generate_kwargs: AttackedKwargs = AttackedKwargs()


class PoolConfig(_Section):
    min: Annotated[int, Field(ge=1)] = 1
    max: Annotated[int, Field(ge=1)] | None = None
    """null: as many as the cluster has room for."""
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: dict[str, float] = {}
    """Custom Ray resources that an actor needs besides."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self


class GpuPoolConfig(PoolConfig):
    num_gpus: Annotated[float, Field(ge=0)] = 1.0
    """Where any key of `pools.gpu` is set, the job waits for GPUs that its cluster does not have yet."""


class Pools(_Section):
    cpu: PoolConfig = PoolConfig()
    gpu: GpuPoolConfig = GpuPoolConfig()
    """Of scorers that use torch."""


class ScoringConfig(_Section):
    scorers: tuple[dict[str, Any], ...] = ()
    """The first is the one trained on; each is `{class_name: ..., ...}`."""
    segmenter: Literal["sentences", "lines", "document"] = "sentences"
    pools: Pools = Pools()
    max_failed_fraction: Fraction = 0.01
    """The job stops when more than this share of the segments could not be scored, or of the records not be read. Ten
    records, if they are at most half of all, never stop it."""
    text_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A text on which a scorer takes longer has no score: a segment, or for PEP8 a document."""
    reference_date: str = "2026-11-20"
    """Dates and ages are judged from here, so scores do not change with the day."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        for scorer in self.scorers:
            if "class_name" not in scorer:
                raise ValueError(f"scorer {scorer!r} has no class_name; write {{class_name: PEP8Scorer}}")
        return self


class Config(_Section):
    dataset: DatasetConfig = DatasetConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    objective: Objective = MLE()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    kl_gpt3_callback: KLConfig = KLConfig()
    red_team: RedTeamConfig = RedTeamConfig()
    scoring: ScoringConfig = ScoringConfig()
    compat: Literal["korbak2023"] | None = None

    @property
    def scorer(self) -> dict[str, Any]:
        """Config of the scorer that is trained on and, unless generation says otherwise, evaluated with."""
        if not self.scoring.scorers:
            raise ConfigError("scoring.scorers is empty; add for example `scorers: [{class_name: PEP8Scorer}]`")
        return self.scoring.scorers[0]

    @property
    def evaluation_scorer(self) -> dict[str, Any]:
        return self.generation.scorer_config or self.scorer

    @model_validator(mode="after")
    def _original_has_it(self) -> Self:
        if self.compat is not None and self.dataset.filter_average != "segments":
            raise ValueError("dataset.filter_average: tokens is not in the original; use segments with compat")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        conditional = self.dataset.conditional_training_config
        if conditional is not None:
            missing = {conditional.aligned_prefix, conditional.misaligned_prefix} - set(self.tokenizer.special_tokens)
            if missing:
                problems.append(f"tokenizer.special_tokens lacks the control tokens {sorted(missing)}; add them")
        if self.training.tokens_already_seen >= self.training.num_tokens:
            problems.append(
                f"training.tokens_already_seen={self.training.tokens_already_seen} leaves nothing of "
                f"training.num_tokens={self.training.num_tokens}"
            )
        objective = self.objective
        if isinstance(objective, AWR):
            if self.compat is None and objective.alpha == 1:
                problems.append("objective AWR with alpha 1 trains no value head; use `objective: {name: RWR}`")
            if objective.fixed_value is None and self.model.model_kwargs.value_head_config is None:
                problems.append("objective AWR needs model.model_kwargs.value_head_config, or objective.fixed_value")
        names = [scenario.name for scenario in self.generation.scenario_configs]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"generation.scenario_configs has two scenarios named {name!r}; names must differ")
        if problems:
            raise ValueError("; ".join(problems))
        return self


# Keys of the original that mean nothing here, or go by another name: key -> what to do instead.
REPLACED = {
    "dataset.num_of_sequences": "blocks are shuffled on disk; remove it",
    "dataset.chars_per_token": "packing streams without a buffer; remove it",
    "dataset.concat_token": "documents are separated by the tokenizer's eos_token; remove it",
    "model.gpt2_config_kwargs": "use model.config_kwargs",
    "model.model_kwargs.revision": "use model.revision",
    "model.config_kwargs.scale_attn_by": "GPT-2 has no such field and the original ignored it (A-16); remove it, "
    "or use scale_attn_by_inverse_layer_idx",
    "training.output_dir": "use --storage-path and --run-name",
    "training.fp16": "use training.precision: bf16 or fp32; fp16 needs loss scaling and overflows in AWR weights",
    "training.bf16": "use training.precision: bf16",
    "training.evaluation_strategy": "held-out bits per byte follow dataset.held_out_fraction; remove it",
    "training.save_strategy": "use training.save_steps",
    "training.logging_first_step": "the first step is always logged; remove it",
    "training.remove_unused_columns": "blocks have no unused columns; remove it",
    "training.dataloader_num_workers": "Ray reads the blocks; remove it",
    "training.gradient_accumulation_steps": "it follows from effective_batch_size, num_workers and "
    "per_device_train_batch_size; remove it",
    "training.max_steps": "it follows from the batch size and sequence length; set training.num_tokens",
    "training.hub_strategy": "the last checkpoint is pushed, with training.push_to_hub: true; remove it",
    "training.report_to": "metrics.jsonl is always written, wandb follows WANDB_MODE and WANDB_API_KEY; remove it",
    "generation.scenario_configs.token_type_id": "the original never used it; remove it",
    "generation.scenario_configs.generate_kwargs.eos_token_id": "it follows from the tokenizer; remove it",
    "generation.scenario_configs.generate_kwargs.bad_words_ids": "control tokens are banned or replaced by the model's "
    "own policy; remove it",
    "kl_gpt3_callback.gpt3_kwargs": "davinci and code-cushman-001 were shut down; set kl_gpt3_callback.reference to a "
    "directory, or to NAME=URL of a server",
    "objective.use_head_train_steps": "the original never read it; remove it",
}


def load_config(task: str | Path, method: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The task file with the method file merged over it and the overrides (`a.b=c`) over both.

    Raises ConfigError with every problem found, not only the first.
    """
    merged = _read_yaml(Path(task))
    if method is not None:
        merged = merge(merged, _read_yaml(Path(method)))
    for override in overrides:
        merged = merge(merged, _parse_override(override))
    return parse_config(merged, source=" + ".join(str(part) for part in (task, method) if part is not None))


def parse_config(values: Mapping[str, Any], source: str = "configuration") -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = sorted({_describe(detail) for detail in error.errors()})
        raise ConfigError(
            f"{source}: {len(problems)} problem(s)\n" + "\n".join(f"  - {line}" for line in problems)
        ) from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: mappings are merged key by key, anything else is replaced whole.

    A section that changes its `name` (the objective) starts anew: keys of the old kind do not leak into the new one.
    """
    if "name" in over and "name" in base and over["name"] != base["name"]:
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the path of a configuration file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected sections such as `dataset:`")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if path.resolve() in seen:
        raise ConfigError(f"{path} extends itself by way of {parent}; remove one `extends:`")
    return merge(_read_yaml(path.parent / str(parent), (*seen, path.resolve())), values)


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {override!r} has no value; write section.key=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _describe(detail: Any) -> str:
    # Indices of lists and names of union members are no part of the key as the user wrote it.
    path = [part for part in detail["loc"] if isinstance(part, str) and part not in _UNION_MEMBERS]
    key = ".".join(path)
    shown = ".".join(str(part) for part in detail["loc"] if part not in _UNION_MEMBERS)
    if key in REPLACED:
        return f"{shown}: {REPLACED[key]}"
    if detail["type"] == "extra_forbidden":
        return f"{shown}: unknown key; {_suggestion(path)}"
    if detail["type"] == "value_error":
        message = str(detail["ctx"]["error"])
        return f"{shown}: {message}" if shown else message
    return f"{shown}: {detail['msg'][0].lower()}{detail['msg'][1:]}, got {detail['input']!r}"


def _suggestion(path: Sequence[str]) -> str:
    known = sorted(_known_keys(path[:-1]))
    near = difflib.get_close_matches(path[-1], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(known)}"


def _known_keys(path: Sequence[str]) -> set[str]:
    models: list[type[BaseModel]] = [Config]
    for part in path:
        found = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = [inner for annotation in found for inner in _models_in(annotation)]
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None:
        return []
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


# Names that pydantic puts into an error's path for members of a union.
_UNION_MEMBERS = {"MLE", "Unlikelihood", "AWR", "RWR", "Quantile", "float", "int"}

__all__ = [
    "AWR",
    "MLE",
    "RWR",
    "Config",
    "Quantile",
    "Threshold",
    "Unlikelihood",
    "load_config",
    "merge",
    "parse_config",
]
