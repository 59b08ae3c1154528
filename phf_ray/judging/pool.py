"""A pool of annotators, checked as far as that needs no weights and no server; and the annotators built from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phf_ray.config import (
    AnnotatorConfig,
    AnnotatorPool,
    JudgeConfig,
    JudgeServer,
    ScoreServer,
    extended,
    parse_section,
    pool_path,
    read_yaml,
)
from phf_ray.config.annotators import OF_NO_CONSEQUENCE
from phf_ray.errors import ConfigError
from phf_ray.judging.annotators import Annotator, AskedAnnotator, LocalAnnotator, Manner, ServedScorerAnnotator
from phf_ray.judging.judges.build import build_judge
from phf_ray.judging.judges.outside import judge_class
from phf_ray.judging.logit_bias import logit_bias
from phf_ray.judging.prompts import JudgePrompt, load_prompts
from phf_ray.judging.score_server import Identity, scoring_judge
from phf_ray.scorers import scorer_settings
from phf_ray.storage.hashing import digest


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool and the prompts of its judges behind URLs. It holds only configuration, and can be sent anywhere."""

    config: AnnotatorPool
    prompts: Mapping[str, tuple[JudgePrompt, JudgePrompt]]
    """Name of the annotator -> prompts for rows without and with an input."""
    identities: Mapping[str, Identity | None] = field(default_factory=dict)
    """Name of an annotator whose scorer is behind a URL -> what its server says of it, once it was asked
    (`served_scorers.py`)."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(annotator.name for annotator in self.config.annotators)

    @property
    def identity(self) -> str:
        """Hash of everything that decides its judgements, but for what servers say of their scorers."""
        return digest([_stripped(self.config.model_dump(mode="json")), repr(self.prompts)])

    @property
    def endpoints(self) -> dict[str, JudgeServer]:
        """Whom a question names as its judge -> the server, with the pool's values where it has none of its own."""
        found = (self.endpoint(annotator) for annotator in self.config.annotators)
        return {judge_of(endpoint): endpoint for endpoint in found if endpoint is not None}

    @property
    def in_flight(self) -> int:
        """Prompts to ask at once: as many as its servers take together."""
        asked = sum(server.max_in_flight for server in self.endpoints.values())
        return asked + sum(server.max_in_flight for server in self.score_servers.values()) or 1

    @property
    def score_servers(self) -> dict[str, ScoreServer]:
        """Name of an annotator -> the server of its scorer, for those whose scorer is behind a URL."""
        found = ((annotator.name, annotator.judge.score_server) for annotator in self.config.annotators)
        return {name: server for name, server in found if server is not None}

    def endpoint(self, annotator: AnnotatorConfig) -> JudgeServer | None:
        own = annotator.judge.endpoint
        if own is None:
            return None
        pool = self.config
        model = own.model or pool.model or ""
        model = pool.models.get(model, model)
        return own.model_copy(
            update={
                "url": own.url or pool.url,
                "model": model,
                "price": own.price or pool.prices.get(model),
                # The pool's key is for the pool's server.
                "key_env": own.key_env or (pool.key_env if own.url is None else None),
            }
        )

    def build(self, *, seed: int = 0) -> dict[str, Annotator]:
        """Build the annotators, which may load models. `seed`: that of the call.

        Raises ConfigError if a judge or a tokenizer can't be loaded.
        """
        return {
            annotator.name: self._built(annotator, seed=seed + annotator.seed) for annotator in self.config.annotators
        }

    def build_asked(self, *, seed: int = 0) -> dict[str, Annotator]:
        """Build the annotators whose judges are behind URLs; they load no weights."""
        asked = (annotator for annotator in self.config.annotators if annotator.judge.endpoint is not None)
        return {annotator.name: self._built(annotator, seed=seed + annotator.seed) for annotator in asked}

    def _built(self, annotator: AnnotatorConfig, *, seed: int) -> Annotator:
        endpoint, scores = self.endpoint(annotator), annotator.judge.score_server
        if scores is not None:
            judge = scoring_judge(scores, self.identities.get(annotator.name))
            return ServedScorerAnnotator(annotator, scores, judge=judge)
        if endpoint is None:
            return LocalAnnotator(annotator, build_judge(annotator.judge, seed=seed))
        assert annotator.parser is not None
        decoding = dict(annotator.decoding)
        if bias := logit_bias(annotator, tokenizer=annotator.tokenizer or self.config.tokenizer):
            decoding["logit_bias"] = {**bias, **decoding.get("logit_bias", {})}
        if annotator.parser.logprobs is not None:
            # The two kinds of endpoint ask for the likeliest tokens in two ways.
            num = self.config.num_top_logprobs
            asked = {"logprobs": True, "top_logprobs": num} if annotator.judge.chat else {"logprobs": num}
            decoding = {**asked, **decoding}
        manner = Manner(judge_of(endpoint), self.prompts[annotator.name], annotator.parser, decoding, seed)
        return AskedAnnotator(annotator, manner)


def _stripped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _stripped(inner) for name, inner in value.items() if name not in OF_NO_CONSEQUENCE}
    return [_stripped(inner) for inner in value] if isinstance(value, list) else value


def judge_of(endpoint: JudgeServer) -> str:
    """Return whom a question names as its judge: URL and model."""
    return f"{str(endpoint.url).rstrip('/').removesuffix('/v1')} {endpoint.model}"


def load_pool(pool: str | Path | Mapping[str, Any] | Sequence[Any], *, over: Mapping[str, Any] | None = None) -> Pool:
    """Load a pool: the name of a shipped one (`offline`), a file, what a file holds, or a list of annotators.

    `over`: values in place of the pool's own, such as `{"url": "http://localhost:8000"}`; a `model` is asked in place
    of those that the pool names, too. Raises ConfigError with every problem that can be found without loading weights.
    """
    if isinstance(pool, list | tuple):
        pool = {"annotators": pool}
    if not isinstance(pool, Mapping | str | Path):
        raise ConfigError(f"annotators are {pool!r:.80}; give the name of a shipped pool, a file, or what a file holds")
    if isinstance(pool, Mapping):
        folder, source, values = Path.cwd(), "annotators", extended(pool, Path.cwd() / "annotators.yml")
    else:
        file = pool_path(pool)
        folder, source, values = file.parent, str(pool), read_yaml(file)
    given = {key: value for key, value in (over or {}).items() if value is not None}
    config = parse_section(AnnotatorPool, {**values, **given}, source)
    if "model" in given:
        config = _asking(config, str(config.model), source)
    else:
        _check_models(config, source)
    prompts = {
        one.name: load_prompts(one, folder=folder) for one in config.annotators if one.judge.endpoint is not None
    }
    for annotator in config.annotators:
        _check_local(annotator)
    return Pool(config, prompts)


def _asking(config: AnnotatorPool, model: str, source: str) -> AnnotatorPool:
    """Return the pool with `model` in place of the models that it names, but for those that `models` renames.

    A judge with a model on a server of its own keeps it. Raises ConfigError if no judge takes the model.
    """
    annotators = [one.model_copy(update={"judge": _unnamed(one.judge, config)}) for one in config.annotators]
    asked = [one.judge.endpoint for one in annotators if one.judge.endpoint is not None]
    if not any(one.model is None for one in asked):
        named = ", ".join(sorted({str(one.model) for one in asked}))
        why = (
            f"its judges ask {named}, on servers of their own or renamed by `models`" if asked else "it asks no server"
        )
        raise ConfigError(f"model {model!r}: no judge of {source} takes it: {why}; leave it out, or change the file")
    return config.model_copy(update={"annotators": tuple(annotators)})


def _unnamed(judge: JudgeConfig, pool: AnnotatorPool) -> JudgeConfig:
    own = judge.endpoint
    if own is None or own.url is not None or own.model in pool.models:
        return judge
    return judge.model_copy(update={"chat" if judge.chat else "completion": own.model_copy(update={"model": None})})


def _check_models(config: AnnotatorPool, source: str) -> None:
    """Raise ConfigError if the pool's `model`, or one of its `prices`, is for no judge."""
    asked = [one.judge.endpoint for one in config.annotators if one.judge.endpoint is not None]
    if config.model is not None and all(one.model is not None for one in asked):
        raise ConfigError(
            f"{source}: model {config.model!r} is for judges that name none, and there are none; rename the models of "
            "its judges with `models: {NAME: NEW}`, or give the model as --model, or model=..., to have all ask it"
        )
    named = {one.model or config.model or "" for one in asked}
    models = sorted(config.models.get(model, model) for model in named)
    for name in config.prices:
        if name not in models:
            raise ConfigError(
                f"{source}: prices names {name!r}, a model that no judge asks; they ask {', '.join(models) or 'none'}"
            )


def _check_local(annotator: AnnotatorConfig) -> None:
    """Raise ConfigError if its scorer, or its class, is not there."""
    judge = annotator.judge
    scorer = judge.biased_scorer.scorer if judge.biased_scorer is not None else judge.scorer
    try:
        if scorer is not None and not isinstance(scorer, ScoreServer):
            scorer_settings(scorer)
        if judge.class_name is not None:
            judge_class(judge.class_name)
    except ConfigError as error:
        raise ConfigError(f"annotator {annotator.name}: {error}") from None
