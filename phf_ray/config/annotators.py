"""A pool of annotators: who compares two answers, what they are shown, and how their words are read.

A pool is a file of its own (`configs/annotators/*.yml`), not a section of a run's configuration.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from phf_ray.config.base import Count, Positive, Section, whole_number
from phf_ray.config.score_servers import RewardChoice, ScorerChoice, ScoreServer

Label = Annotated[Literal[1, 2], BeforeValidator(whole_number)]
"""1: the answer that was shown first is better; 2: the second."""
Rule = Literal["longer", "shorter", "random", "constant"]
Order = Literal["random", "first", "both"]


class TokenPrice(Section):
    """Money for a million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Of prompts."""
    output: Annotated[float, Field(ge=0)]
    """Of answers."""


class JudgeServer(Section):
    """An OpenAI-compatible server and a model on it."""

    url: str | None = None
    """null: the `url` of the pool."""
    model: str | None = None
    """null: the `model` of the pool."""
    key_env: str | None = None
    """Environment variable that holds the server's key; null: the pool's, else PHF_API_KEY (at OpenAI,
    OPENAI_API_KEY)."""
    max_in_flight: Positive = 64
    """Requests sent and not answered, of each process."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """How long a request is sent again while the server is busy, failing or away."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """How long an answer may take."""
    price: TokenPrice | None = None
    """null: that of its model in the pool's `prices`."""


class BiasedScorerSettings(Section):
    """A scorer's preference plus stated biases: the answer with the lower score gains (s - s') / (|s| + |s'|) over the
    other, at most 1, whatever the scorer's unit. The weights say what else makes an answer gain."""

    scorer: ScorerChoice
    """`{class_name: PEP8Scorer}` and the like, or `{url: ..., name: ...}`. The lower score is better."""
    length_weight: float = 0.0
    """What an answer of e times the length gains; below 0: loses."""
    position_weight: float = 0.0
    """What the answer that is shown first gains; below 0: loses."""
    ignore: tuple[Literal["white_space"], ...] = ()
    """What the scorer is not shown. white_space: odd indents, double spaces, empty lines and spaces at their ends."""


class JudgeConfig(Section):
    """Exactly one of these says who judges."""

    chat: JudgeServer | None = None
    completion: JudgeServer | None = None
    reward_model: RewardChoice | None = None
    """Folder or hub id, or `{url: ...}`; the higher reward is better."""
    scorer: ScorerChoice | None = None
    """`{class_name: PEP8Scorer}` and the like, or `{url: ..., name: ...}`; the lower score is better."""
    biased_scorer: BiasedScorerSettings | None = None
    rule: Rule | None = None
    """constant: always the answer that is shown first."""
    class_name: str | None = None
    """A judge of your own: `my_module:MyJudge`."""
    settings: dict[str, Any] = {}
    """Arguments of the judge that class_name names."""

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"{value!r} names no kind of judge; write for example {{rule: longer}}")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        kinds = [name for name in type(self).model_fields if name != "settings"]
        found = [name for name in kinds if getattr(self, name) is not None]
        if len(found) != 1:
            raise ValueError(f"names {', '.join(found) or 'no judge'}; name one of {', '.join(kinds)}")
        if self.settings and self.class_name is None:
            raise ValueError("settings are those of a judge that class_name names; remove them")
        return self

    @property
    def endpoint(self) -> JudgeServer | None:
        """The server whose model is asked in words; None: nobody is."""
        return self.chat or self.completion

    @property
    def score_server(self) -> ScoreServer | None:
        """The server that scores the answers; None: none does."""
        scorer = self.scorer if self.biased_scorer is None else self.biased_scorer.scorer
        return next((one for one in (scorer, self.reward_model) if isinstance(one, ScoreServer)), None)

    @property
    def is_here(self) -> bool:
        """Whether the judge is in this process."""
        return self.endpoint is None and self.score_server is None


class RankingParser(Section):
    name: str = "model_1"
    """The judge ranks models in a list; what it calls the one that is shown first."""
    name_key: str = "model"
    rank_key: str = "rank"


class JsonParser(Section):
    key: str
    """The judge answers with JSON objects; their field with the verdict."""
    values: dict[Label, str | int | bool]
    """What the field says if the first answer is better, and if the second is."""


class ParserConfig(Section):
    """Exactly one of these reads a judge's words."""

    regex: dict[Label, str] | None = None
    """Patterns of both verdicts. The earliest match counts, then the earliest after it, once per pair of the prompt."""
    ranking: RankingParser | None = None
    json_field: JsonParser | None = None
    logprobs: dict[Label, tuple[str, ...]] | None = None
    """First tokens that mean each verdict. The preference is 1 + p(2) / (p(1) + p(2))."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        kinds = list(type(self).model_fields)
        found = [name for name in kinds if getattr(self, name) is not None]
        if len(found) != 1:
            raise ValueError(f"names {', '.join(found) or 'no parser'}; name one of {', '.join(kinds)}")
        for labels in (self.regex, self.logprobs, self.json_field and self.json_field.values):
            if labels is not None and set(labels) != {1, 2}:
                raise ValueError(f"{found[0]} has verdicts {sorted(labels)}; write one for 1 and one for 2")
        if self.json_field is not None:
            first, second = (self.json_field.values[label] for label in (1, 2))
            if same_value(first, second):
                raise ValueError(f"json_field has equal values for both verdicts, {first!r} and {second!r}; change one")
        for pattern in (self.regex or {}).values():
            _check_pattern(pattern)
        return self


def same_value(said: Any, wanted: str | int | bool) -> bool:
    """Whether a field says this value: case and white space around texts don't matter, and 1 is not true."""
    if isinstance(said, str) and isinstance(wanted, str):
        return said.strip().lower() == wanted.strip().lower()
    return type(said) is type(wanted) and said == wanted


def _check_pattern(pattern: str) -> None:
    try:
        matches_nothing = re.match(pattern, "") is not None
    except re.error as error:
        raise ValueError(f"regex {pattern!r} is no regular expression: {error}") from None
    if matches_nothing:
        raise ValueError(f"regex {pattern!r} matches an empty text, so it would match everywhere")


class PromptFiles(Section):
    """Files for rows without and with an input. A path is looked for beside the pool's file."""

    without_input: str
    with_input: str


class AnnotatorConfig(Section):
    name: Annotated[str, Field(min_length=1)]
    judge: JudgeConfig
    prompt: str | PromptFiles | None = None
    """File of the prompt (.txt, or .yml with messages) of a judge behind a URL. One file alone shows the instruction
    and its input as one text."""
    parser: ParserConfig | None = None
    order: Order = "random"
    """random: a hash of the row draws who is shown first; first: as the row has it; both: asked twice."""
    combine: Literal["consistent", "average"] = "consistent"
    """With `order: both`. consistent: verdicts that differ are a tie; average: the mean of both."""
    seed: int = 0
    """Added to the seed of the call, so that two annotators draw different orders; it is also sent to the server."""
    batch_size: Positive = 1
    """Pairs in one prompt, whose places the prompt has as often."""
    decoding: dict[str, Any] = {}
    """temperature, max_tokens and the like, as the server names them."""
    tokens_to_avoid: tuple[str | int, ...] = ()
    """Tokens, or their ids, that get a logit bias of -100. Texts of several tokens are skipped, with a warning."""
    tokens_to_favor: tuple[str | int, ...] = ()
    """Tokens, or their ids, that get a logit bias of +7; so does every token of a text of several."""
    tokenizer: str | None = None
    """Folder or hub id of the judge's tokenizer, for tokens that are texts; null: the pool's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.judge.endpoint is None:
            asked = {"prompt", "parser", "batch_size", "decoding", "tokens_to_avoid", "tokens_to_favor", "tokenizer"}
            extra = sorted(asked & self.model_fields_set)
            if extra:
                raise ValueError(
                    f"{self.name}: {', '.join(extra)}: only a chat or completion is asked in words; remove it"
                )
            return self
        missing = [key for key in ("prompt", "parser") if getattr(self, key) is None]
        if missing:
            raise ValueError(f"{self.name}: a judge behind a URL needs a {' and a '.join(missing)}")
        assert self.parser is not None
        if self.batch_size > 1 and (self.parser.ranking or self.parser.logprobs):
            raise ValueError(f"{self.name}: batch_size {self.batch_size}, but the parser reads one verdict per prompt")
        return self


OF_NO_CONSEQUENCE = ("max_in_flight", "patience_s", "timeout_s", "key_env", "price", "prices", "texts_at_once")
"""Settings that decide no judgement."""


class AnnotatorPool(Section):
    annotators: tuple[AnnotatorConfig, ...]
    """A hash of the seed and the instruction draws who judges a row."""
    url: str | None = None
    """Server of the judges that name none."""
    model: str | None = None
    """Model of the judges that name none."""
    models: dict[str, str] = {}
    """Name of a model in this file -> its name on the server, for models that have been retired."""
    prices: dict[str, TokenPrice] = {}
    """Name of a model on its server -> `{input: ..., output: ...}`, money for a million tokens."""
    key_env: str | None = None
    tokenizer: str | None = None
    num_top_logprobs: Count = 5
    """First tokens that are asked for where the parser reads log-probabilities."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.annotators:
            raise ValueError("annotators is empty; write at least one, such as {name: longer, judge: {rule: longer}}")
        names = [annotator.name for annotator in self.annotators]
        for name in sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two annotators are named {name!r}; names must differ")
        for annotator in self.annotators:
            endpoint = annotator.judge.endpoint
            for key in ("url", "model"):
                if endpoint is not None and getattr(endpoint, key) is None and getattr(self, key) is None:
                    raise ValueError(
                        f"{annotator.name}: no {key}; set it in the pool's file, or with `{key}` for the whole pool"
                    )
        return self
