"""KL over HTTP, against the real application in this process."""

import json
import logging
import re
from dataclasses import replace
from types import SimpleNamespace

import fsspec
import pytest
import torch
from evaluation_server import Server, listening
from text_logprobs import text_logprobs
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer, write_checkpoint

from jobs.evaluate_lm import _check_kl, _with_kl
from phf_ray.blocks.segment_tokens import owners_of_tokens
from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.beside_training import EvaluationJob
from phf_ray.evaluation.kl.arms import has_control_per_line, kl_of_arms
from phf_ray.evaluation.kl.encoding import encode
from phf_ray.evaluation.kl.measure import measure_kl
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer, line_starts
from phf_ray.evaluation.kl.texts import ReferenceText, reference_texts
from phf_ray.evaluation.weights import evaluate_weights
from phf_ray.generation.engine import Engine
from phf_ray.generation.requests import EngineSettings
from phf_ray.http.client import Client, RefusedError
from phf_ray.runs.directory import RunDirectory
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.schemas import HealthResponse

CONTROL = Control(good=GOOD, bad=BAD, policy="retag")
TEXTS = [
    ReferenceText("def f(a):\n    return a\n\n\nclass B:\n", ended=False, ids=None),
    ReferenceText("x", ended=True, ids=None),
    ReferenceText("", ended=True, ids=None),
    ReferenceText("caf\u00e9 \u65e5\u672c\n  \n\ny = 1", ended=True, ids=None),
]


def engine_of(*, control, seed):
    tokenizer = tiny_tokenizer(control=control)
    info = CheckpointInfo(control=CONTROL if control else None)
    return Engine(
        tiny_gpt2(tokenizer, seed=seed, vocab_size=len(tokenizer), spread=0.1),
        tokenizer,
        info=info,
        settings=EngineSettings(max_batch=16),
    )


@pytest.fixture(scope="module")
def engines():
    return {
        "a": engine_of(control=False, seed=1),
        "b": engine_of(control=False, seed=2),
        "cond": engine_of(control=True, seed=3),
    }


@pytest.fixture(scope="module")
def url(engines):
    async def health():
        return HealthResponse(status="ok", deployments={})

    models = {name: LocalModel(engine) for name, engine in engines.items()}
    with listening(build_app(Backend(models, {}, health), access_log=False)) as url:
        yield url


@pytest.fixture
def arms(url):
    return {
        "a": Arm("a", url, "a", checkpoint=CheckpointInfo()),
        "b": Arm("b", url, "b", checkpoint=CheckpointInfo()),
        "good": Arm("good", url, "cond", control="good", checkpoint=CheckpointInfo(control=CONTROL)),
        "bad": Arm("bad", url, "cond", control="bad", checkpoint=CheckpointInfo(control=CONTROL)),
    }


def logprobs_over_http(arm, *, per_line=False):
    scorer = SequenceScorer(arm, control_per_line=per_line)
    return scorer.logprobs(TEXTS, scorer.tokenize(TEXTS))


def in_process(engine, texts, *, control=None, per_line=False):
    """The same figures without a server: transformers' forward pass and the tokenizer itself."""
    tokenizer, encoded = engine.strings.tokenizer, []
    for text in texts:
        found = tokenizer(text.text, return_offsets_mapping=True, add_special_tokens=False)
        begins = [begin for begin, _ in found["offset_mapping"]]
        encoded.append(
            encode(
                found["input_ids"] if text.ids is None else text.ids,
                first_id=tokenizer.eos_token_id,
                control_id=None if control is None else tokenizer.convert_tokens_to_ids(control),
                starts=line_starts(text.text, begins) or [0] if per_line else [0],
                ends_with=tokenizer.eos_token_id if text.ended else None,
            )
        )
    return text_logprobs(engine.model, encoded).tolist()


def test_kl_of_a_model_with_itself_is_zero_and_with_another_is_not(arms, engines, tmp_path):
    texts = reference_texts(arms["a"], num_samples=40, max_tokens=12, cache=str(tmp_path))
    assert len(texts) == 40
    assert len({text.text for text in texts}) > 30
    itself = measure_kl(arms["a"], arms["a"], texts)
    assert abs(itself.per_sequence.mean) < 1e-4
    other = measure_kl(arms["a"], arms["b"], texts)
    kept = [text for text in texts if text.text or text.ended]
    expected = torch.tensor(in_process(engines["a"], kept)) - torch.tensor(in_process(engines["b"], kept))
    assert other.per_sequence.mean == pytest.approx(float(expected.mean()), abs=1e-3)
    assert other.per_sequence.mean > 5 * other.per_sequence.standard_error


@pytest.mark.parametrize("per_line", [[], ["good"]])
def test_kl_of_a_conditional_model_with_itself_is_zero_wherever_its_control_tokens_go(arms, tmp_path, per_line):
    settings = {"num_samples": 32, "max_tokens": 40, "cache": str(tmp_path)}
    found = kl_of_arms(arms["good"], [arms["good"], arms["a"]], **settings, per_line=per_line)
    assert abs(found["good"].per_sequence[0]) < 1e-4 < abs(found["a"].per_sequence[0])
    # With a line's end inside a text, which makes a second control token.
    [kept] = tmp_path.glob("texts-*.json")
    assert any("\n" in text["text"].strip("\n") for text in json.loads(kept.read_text())["texts"])


def test_where_the_references_control_tokens_go_is_part_of_what_is_kept(arms, tmp_path):
    texts = [replace(text, ids=None) for text in TEXTS]
    for per_line in (False, True):
        kept = measure_kl(arms["good"], arms["a"], texts, reference_per_line=per_line, cache=str(tmp_path))
        assert kept == measure_kl(arms["good"], arms["a"], texts, reference_per_line=per_line)
    assert len(list(tmp_path.iterdir())) == 2


def test_texts_tokenized_anew_are_said_to_be(arms, tmp_path, caplog):
    texts = reference_texts(arms["a"], num_samples=8, max_tokens=12, cache=str(tmp_path))
    assert all(text.ids is not None for text in texts)
    with caplog.at_level(logging.WARNING):
        measure_kl(arms["a"], arms["b"], texts)
        assert "tokenized anew" not in caplog.text
        itself = measure_kl(arms["a"], arms["a"], [replace(text, ids=None) for text in texts])
    assert "tokenized anew" in caplog.text
    assert abs(itself.per_sequence.mean) < 1e-4


def test_a_model_gets_a_control_token_per_line_where_it_was_trained_so_or_the_key_says_so():
    def per_line(control, segmenter, key):
        values = {"scoring": {"segmenter": segmenter}, "kl_gpt3_callback": {"should_insert_prefix": key}}
        return has_control_per_line(CheckpointInfo(control=control), parse_config(values))

    banned = Control(good=GOOD, bad=BAD, policy="ban")
    assert per_line(CONTROL, "lines", False)
    assert not per_line(CONTROL, "sentences", False)
    assert not per_line(banned, "lines", False)
    assert per_line(CONTROL, "sentences", True)
    assert per_line(banned, "lines", True)
    assert not per_line(None, "lines", True)


def test_tokens_that_are_never_sampled_still_go_before_every_line_where_training_put_them():
    """Trained with `score_control: false`. Older checkpoints don't say it: there `retag` does."""
    lines = parse_config({"scoring": {"segmenter": "lines"}})
    for policy in ("ban", "retag"):
        control = Control(good=GOOD, bad=BAD, policy=policy)
        for is_per_segment, expected in ((True, True), (False, False), (None, policy == "retag")):
            info = CheckpointInfo(control=control, is_control_per_segment=is_per_segment)
            assert has_control_per_line(CheckpointInfo(**info.model_dump()), lines) == expected


@pytest.mark.parametrize(("name", "control"), [("good", GOOD), ("bad", BAD)])
@pytest.mark.parametrize("per_line", [False, True])
def test_control_tokens_go_where_training_puts_them_and_cost_nothing(arms, engines, name, control, per_line):
    found = logprobs_over_http(arms[name], per_line=per_line)
    assert found == pytest.approx(in_process(engines["cond"], TEXTS, control=control, per_line=per_line), abs=1e-3)


def test_a_model_asked_without_a_control_token_gets_none(arms, engines, url):
    bare = Arm("none", url, "cond", control="none", checkpoint=CheckpointInfo(control=CONTROL))
    assert logprobs_over_http(bare) == pytest.approx(in_process(engines["cond"], TEXTS), abs=1e-3)
    assert logprobs_over_http(arms["a"]) == pytest.approx(in_process(engines["a"], TEXTS), abs=1e-3)


def test_lines_begin_where_packing_says():
    tokenizer = tiny_tokenizer()
    compared = 0
    for text in [*(text.text for text in TEXTS), "\n\n  a\n\tb  \n", "a\n   \n   b", "\n", "   \n\n\n    x = 1\n"]:
        if not text:
            continue
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        owners = owners_of_tokens(encoding, text.splitlines(keepends=True))
        expected = [0, *[i for i in range(1, len(owners)) if owners[i] != owners[i - 1]]]
        assert line_starts(text, [begin for begin, _ in encoding.offsets]) == expected, repr(text)
        compared += len(expected)
    assert compared > 15


def test_texts_of_the_reference_are_drawn_once(arms, tmp_path):
    first = reference_texts(arms["a"], num_samples=5, max_tokens=8, cache=str(tmp_path), seed=1)
    # Kept texts need no server, and texts of another seed are other texts.
    kept = SimpleNamespace(**{field: getattr(arms["a"], field) for field in arms["a"].__slots__})
    kept.key = "never used"
    assert reference_texts(kept, num_samples=5, max_tokens=8, cache=str(tmp_path), seed=1) == first
    assert len(list(tmp_path.iterdir())) == 1
    assert reference_texts(arms["a"], num_samples=5, max_tokens=8, cache=str(tmp_path), seed=2) != first


@pytest.mark.parametrize("brings_n", [True, False])
def test_as_many_texts_as_asked_are_drawn_from_the_whole_distribution(tmp_path, brings_n):
    server = Server()
    server.brings_n = brings_n
    try:
        arm = Arm("mle", server.url, "mle")
        texts = reference_texts(arm, num_samples=18, max_tokens=4, cache=str(tmp_path))
        assert len(texts) == 18
        assert {(body["temperature"], body["top_p"], body["top_k"]) for body in server.completions} == {(1.0, 1.0, 0)}
        seeds = [body["seed"] for body in server.completions]
        assert len(set(seeds)) == len(seeds) == (2 if brings_n else 18)
        server.completions.clear()
        server.models["mle"] = {"owned_by": "openai"}
        reference_texts(arm, num_samples=1, max_tokens=4, cache=str(tmp_path))
        assert "top_k" not in server.completions[0]
    finally:
        server.stop()


def test_texts_and_figures_are_kept_on_any_file_system(arms):
    cache = "memory://kept/reference"
    settings = {"num_samples": 6, "max_tokens": 8, "cache": cache}
    found = kl_of_arms(arms["a"], [arms["b"]], **settings)
    kept = {path: info["created"] for path, info in fsspec.filesystem("memory").find(cache, detail=True).items()}
    assert len(kept) == 3
    assert kl_of_arms(arms["a"], [arms["b"]], **settings) == found
    again = {path: info["created"] for path, info in fsspec.filesystem("memory").find(cache, detail=True).items()}
    assert again == kept


class TwoEnds:
    """A server of a model that starts texts with one token and ends them with another, as Llama's."""

    START, END = 1, 2

    def __init__(self, *, info, starts=(START,)):
        self.info, self.starts = info, list(starts)
        self.echoed = []

    def get(self, path):
        if path == "/v1/models":
            return {"data": [{"id": "m"}]}
        assert path == "/tokenizer_info?model=m"
        if self.info is None:
            raise RefusedError("status 404")
        return self.info

    def post(self, path, body):
        if path == "/tokenize":
            special = {"<s>": self.START, "</s>": self.END, "": None}
            text = body["prompt"]
            ids = [special[text]] if text in special else [10 + ord(letter) for letter in text]
            return {"tokens": (self.starts if body["add_special_tokens"] else []) + [id_ for id_ in ids if id_]}
        self.echoed += body["prompt"]
        return {
            "choices": [
                {"index": index, "logprobs": {"token_logprobs": [None, *(-1.0 for _ in ids)], "text_offset": [0]}}
                for index, ids in enumerate(body["prompt"])
            ]
        }


@pytest.mark.parametrize("info", [{"eos_token": "</s>"}, {"bos_token": "<s>", "eos_token": "</s>"}])
def test_a_text_ends_with_the_end_of_text_token_also_where_texts_start_with_another(info):
    server = TwoEnds(info=info)
    scorer = SequenceScorer(Arm("m", "http://x", "m", client=server))
    scorer.logprobs([ReferenceText("a", ended=True, ids=None), ReferenceText("a", ended=False, ids=None)], [[7], [7]])
    assert server.echoed == [[1, 7, 2], [1, 7]]


def test_one_token_at_both_ends_need_not_be_told_twice_and_an_unknown_end_is_named():
    alone = SequenceScorer(Arm("m", "http://x", "m", client=TwoEnds(info={"bos_token": "<s>"}, starts=())))
    assert alone.logprobs([ReferenceText("a", ended=True, ids=None)], [[7]]) == [-2.0]
    for info in ({"bos_token": "<s>"}, {"eos_token": "ab"}, None):
        with pytest.raises(ConfigError, match=r"does not say which token ends a text of m.*tokenizer_info"):
            SequenceScorer(Arm("m", "http://x", "m", client=TwoEnds(info=info)))
    with pytest.raises(ConfigError, match=r"does not say which token a text of m starts with.*tokenizer_info"):
        SequenceScorer(Arm("m", "http://x", "m", client=TwoEnds(info=None, starts=())))


def test_kl_of_a_url_is_measured_anew_where_the_model_behind_it_changed(engines, tmp_path):
    async def health():
        return HealthResponse(status="ok", deployments={})

    models = {"m": LocalModel(engines["a"], fingerprint="1"), "other": LocalModel(engines["b"], fingerprint="2")}
    settings = {"num_samples": 6, "max_tokens": 8, "cache": str(tmp_path)}
    with listening(build_app(Backend(models, {}, health), access_log=False)) as url:
        arms = {name: Arm(name, url, name) for name in models}
        first = kl_of_arms(arms["m"], [arms["m"], arms["other"]], **settings)
        models["other"] = LocalModel(engines["a"], fingerprint="1")
        second = kl_of_arms(arms["m"], [arms["m"], arms["other"]], **settings)
    assert second["m"] == first["m"]
    assert second["other"] == first["m"] != first["other"]
    # Texts, the reference's own log-probabilities of them, and a figure for each model.
    assert len(list(tmp_path.iterdir())) == 2 + 2


class Heard:
    """A server of a model, and the requests for log-probabilities of prompts that reached it."""

    def __init__(self, arm):
        self._server = Client(arm.url)
        self.get = self._server.get
        self.echoed = []

    def post(self, path, body):
        if body.get("echo"):
            self.echoed.append(body)
        return self._server.post(path, body)


def test_the_reference_is_asked_about_its_texts_once_for_all_arms(arms, tmp_path):
    num_asked = []
    for number, wanted in enumerate((["b"], ["b", "good", "bad"])):
        heard = Heard(arms["a"])
        reference = replace(arms["a"], client=heard)
        settings = {"num_samples": 20, "max_tokens": 8, "cache": str(tmp_path / str(number))}
        kl_of_arms(reference, [arms[name] for name in wanted], **settings)
        num_asked.append(sum(len(body["prompt"]) for body in heard.echoed))
    # Models with another tokenizer are compared on other tokens, of which the reference is asked for once, too.
    assert num_asked[0] <= 1 + 20 < num_asked[1] <= 1 + 2 * 20


def test_arms_are_compared_on_the_same_texts_and_measured_once(arms, tmp_path):
    wanted = [arms["a"], arms["b"], arms["good"], arms["bad"]]
    settings = {"num_samples": 24, "max_tokens": 10, "cache": str(tmp_path)}
    found = kl_of_arms(arms["a"], wanted, **settings)
    assert abs(found["a"].per_sequence[0]) < 1e-4
    assert found["b"].per_byte[0] > 0.01
    assert found["good"].per_sequence != found["bad"].per_sequence
    assert {info.num_samples for info in found.values()} <= {23, 24}
    # Where control tokens go is part of what was measured.
    per_line = kl_of_arms(arms["a"], [arms["good"]], **settings, per_line=["good"])
    names = [path.name.partition("-")[0] for path in tmp_path.iterdir()]
    # The reference's own log-probabilities are of the tokens that were drawn, and of those that other tokenizers share.
    assert {kind: names.count(kind) for kind in names} == {"texts": 1, "logprobs": 2, "kl": 4 + 1}
    assert per_line["good"].num_samples == found["good"].num_samples
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert kl_of_arms(arms["a"], wanted, **settings) == found
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def kl_config(**changes):
    return parse_config({"kl_gpt3_callback": {"num_samples": 12, "max_tokens": 8, **changes}})


def test_the_prefix_is_the_control_token_that_the_models_are_given(arms, tmp_path):
    def found(prefix, *names):
        wanted = [arms[name] for name in names]
        settings = {"reference": arms["a"], "cache": str(tmp_path)}
        return [arm.kl.per_byte for arm in _with_kl(kl_config(prefix=prefix), wanted, **settings)]

    good, bad = found(None, "good", "bad")
    assert good != bad
    assert found(GOOD, "good", "bad") == [good, good]
    assert found(BAD, "good", "bad") == [bad, bad]
    for prefix, name, message in (("# good", "good", f"good has the control tokens {GOOD}"), (GOOD, "a", "a has no")):
        with pytest.raises(ConfigError, match=rf"prefix: .*{re.escape(message)}.* or null"):
            _check_kl(kl_config(prefix=prefix), [arms[name]], reference=arms["a"], cache=str(tmp_path))


def test_beside_the_training_the_prefix_is_the_control_token_too(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.hand_out_weights(7, lambda folder: write_checkpoint(folder, control="retag"))
    reference = write_checkpoint(tmp_path / "ref", seed=5)

    def found(prefix):
        config = kl_config(prefix=prefix, reference=f"ref={reference}").model_dump(mode="json")
        nowhere = frozenset()
        job = EvaluationJob(config, str(run.path), {"CPU": 1.0}, generation_steps=nowhere, kl_steps=frozenset({7}))
        return evaluate_weights(job, 7)["KL/ref/per_byte"]

    assert found(None) == found(GOOD) != found(BAD)
    with pytest.raises(ConfigError, match="give a control token that every model has"):
        found("# good")


def test_a_server_without_logprobs_of_prompts_is_named_with_what_to_do(tmp_path):
    server = Server()
    try:
        arm = Arm("mle", server.url, "mle")
        with pytest.raises(ConfigError, match="KL needs a server with `echo` and `logprobs`"):
            logprobs_over_http(arm)
        # Named before a text is drawn.
        server.completions.clear()
        with pytest.raises(ConfigError, match="KL needs a server with `echo` and `logprobs`"):
            kl_of_arms(arm, [arm], num_samples=4, max_tokens=4, cache=str(tmp_path))
        assert [body for body in server.completions if not body.get("echo")] == []
    finally:
        server.stop()
