"""Sections `dataset` and `tokenizer`: which corpora are used, and how they become token blocks."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from phf_ray.config.base import Count, Fraction, Quantile, Section, Threshold, whole_number


class ConditionalTrainingConfig(Section):
    threshold: Threshold = Quantile(quantile=0.5)
    """Segments with at most this score are aligned."""
    aligned_prefix: str = "<|aligned|>"
    misaligned_prefix: str = "<|misaligned|>"
    drop_token_fraction: Fraction = 0.0
    """Probability that a segment gets no control token."""


class DatasetConfig(Section):
    datasets: tuple[str, ...] = ()
    """Scored corpora or, where nothing reads scores, any text: folders, files, globs, URLs, or data sets by name:
    ID[:CONFIG][@SPLIT]."""
    text_column: str | None = None
    """Column with the text in JSON lines and tables of data sets without scores; null: texts, text or content."""
    text_unit: Literal["document", "line"] = "document"
    """Document of a text file (.txt, .md, ...) without scores: the whole file, or every line that is not blank."""
    prompt_template: str | None = None
    """Template of the prompts of feedback corpora: tokenizer (its chat template), alpaca, hh, plain, or a file; null:
    the tokenizer's own if it has one, else alpaca for instructions, hh for messages, plain for texts."""
    max_length: Annotated[int, Field(ge=4)] | None = None
    """Tokens of an example, prompt and completion together; null: seq_length, or half of it for each answer of a
    pair."""
    learn: Literal["completions", "all"] = "completions"
    """Tokens of examples that are learned: those of answers, or those of prompts too."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Share of each data set among the sequences; null: every sequence of every data set once per epoch."""
    loss_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """Weight of each data set in the loss; null: 1, and 0.01 for text beside feedback. Feedback and text are averaged
    apart, and the averages added."""
    is_split_by_sentences: bool = True
    """false: one control token per document instead of one per segment."""
    seq_length: Annotated[int, BeforeValidator(whole_number), Field(ge=2)] = 1024
    conditional_training_config: ConditionalTrainingConfig | None = None
    filter_threshold: Threshold | None = None
    """Documents with an average score above this are dropped."""
    filter_average: Literal["segments", "tokens"] = "segments"
    """Unit of that average: every segment, or every token, of a document has equal weight."""
    skip_tokens: Count = 0
    """Tokens to skip at the head of the stream (for finetuning on the second half)."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of documents, chosen by hash of the id, that are never packed and serve to measure bits per byte."""
    eval_datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")], str] = {}
    """Name -> data set that is measured during training (see training.eval_steps), never trained on."""
    eval_overlap: Literal["count", "refuse"] = "count"
    """Documents of an evaluation set that are also in the training data: warn with their number, or refuse."""
    unscored: Literal["mask", "mle"] = "mask"
    """Loss on tokens of segments without a score: none (mask), or plain likelihood (mle)."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and (len(self.weights) != len(self.datasets) or not any(self.weights)):
            raise ValueError(
                f"weights={list(self.weights)} for {len(self.datasets)} datasets; give each dataset a number, not all 0"
            )
        return self

    @model_validator(mode="after")
    def _one_loss_weight_each(self) -> Self:
        weights = self.loss_weights
        if weights is not None and (len(weights) != len(self.datasets) or not any(weights)):
            raise ValueError(
                f"loss_weights={list(weights)} for {len(self.datasets)} datasets; give each dataset a number, not all 0"
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


class TokenizerConfig(Section):
    path_or_name: str = "gpt2"
    """Default: the tokenizer of the model that training starts from, and gpt2 for a new model."""
    revision: str | None = None
    special_tokens: tuple[str, ...] = ()
