"""KL from a reference behind OpenAI's API, which gives log-probabilities of what it draws, and from kept texts."""

import json
from types import SimpleNamespace

import pytest
from evaluation_server import Server, listening
from fastapi.responses import JSONResponse
from logprob_server import LogprobServer, exact_kl, letters_engine
from tiny_models import tiny_gpt2, tiny_tokenizer

from jobs import evaluate_lm
from jobs.evaluate_lm import _check_kl, _with_kl
from phf_ray.checkpoint import CheckpointInfo, write_info
from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError, ServiceError
from phf_ray.evaluation.arms import Arm
from phf_ray.evaluation.beside_training import plan_evaluations
from phf_ray.evaluation.in_process import InProcessModel
from phf_ray.evaluation.kl.ask_drawn import CHAT_PROMPT
from phf_ray.evaluation.kl.measure_drawn import measure_drawn
from phf_ray.evaluation.kl.rows import kl_rows
from phf_ray.evaluation.kl.sample_file import read_reference_samples
from phf_ray.evaluation.weights import evaluate_weights
from phf_ray.generation.engine import Engine
from phf_ray.runs.directory import RunDirectory

LENGTH = 4


@pytest.fixture(scope="module")
def engines():
    return {"gpt": letters_engine(seed=1), "mle": letters_engine(seed=2), "other": letters_engine(seed=3)}


def arm_of(engine, name="mle"):
    return Arm(name, "", name, client=InProcessModel(name, engine), fingerprint=name, checkpoint=CheckpointInfo())


def gpt_at(url):
    return Arm("gpt", url, "gpt", source=url, key="sesame")


def config_of(num_samples=200, **changes):
    return parse_config({"kl_gpt3_callback": {"num_samples": num_samples, "max_tokens": LENGTH, **changes}})


def measured(config, engine, *, reference, cache, name="mle"):
    arms = [arm_of(engine, name)]
    _check_kl(config, arms, reference=reference, cache=str(cache))
    [arm] = _with_kl(config, arms, reference=reference, cache=str(cache))
    return arm.kl


@pytest.mark.parametrize("chat", [False, True])
def test_kl_from_log_probabilities_of_drawn_tokens_is_the_one_of_all_logits(engines, tmp_path, chat):
    server = LogprobServer(engines["gpt"], chat=chat)
    with listening(server.app) as url:
        kl = measured(config_of(320), engines["mle"], reference=gpt_at(url), cache=tmp_path)
        num_asked, num_listed = len(server.bodies), server.num_listed
        # The reference is asked once: another model is measured on the same texts, without a word to the server.
        other = measured(config_of(320), engines["other"], reference=gpt_at(url), cache=tmp_path, name="other")
        assert (len(server.bodies), server.num_listed) == (num_asked, num_listed)
        itself = measured(config_of(320), engines["gpt"], reference=gpt_at(url), cache=tmp_path, name="itself")
    for found, name in ((kl, "mle"), (other, "other")):
        exact = exact_kl(engines["gpt"], engines[name], length=LENGTH, with_end=not chat)
        mean, error = found.per_sequence
        assert abs(mean - exact) < 3 * error < exact / 3
    assert abs(itself.per_sequence[0]) < 1e-4
    # All letters are tokens, so the numbers of tokens agree; one of the letters has two bytes.
    assert kl.per_byte[0] < kl.per_token[0] < kl.per_sequence[0]
    assert server.keys == {"Bearer sesame"}
    assert {(body["temperature"], body["top_p"]) for body in server.bodies} == {(1.0, 1.0)}
    assert sum(body["n"] for body in server.bodies) == 320 + 2, "twice one to see what it gives"
    if chat:
        assert {body["messages"][0]["content"] for body in server.bodies} == {"Hi", CHAT_PROMPT}
        assert "no text's end counts" in kl.note
        assert 'the chat prompt "Write the beginning' in kl.note
        [(reason, count)] = kl.failures.items()
        assert reason == "empty, without a log-probability of its end"
        assert count + kl.num_samples == 320
    else:
        assert (kl.note, kl.failures, kl.num_samples) == ("", {}, 320)


def test_a_file_of_kept_texts_takes_the_place_of_the_reference(engines, tmp_path):
    server = LogprobServer(engines["gpt"])
    with listening(server.app) as url:
        kl = measured(config_of(), engines["mle"], reference=gpt_at(url), cache=tmp_path / "first")
    [file] = (tmp_path / "first").glob("samples-*.jsonl")
    head = json.loads(file.read_text().splitlines()[0])
    assert (head["reference"], head["url"], head["api"], head["max_tokens"]) == ("gpt", url, "completions", LENGTH)
    samples = read_reference_samples(str(file))
    assert measured(config_of(), engines["mle"], reference=samples, cache=tmp_path / "second") == kl
    some = measured(config_of(50), engines["mle"], reference=samples, cache=tmp_path / "second")
    assert some.num_samples == 50


def original_cache(path, engine, *, num, name="davinci"):
    """Write the cache of the original: texts after the end-of-text token, and the sums of their log-probabilities."""
    server = LogprobServer(engine)
    with listening(server.app) as url:
        cache = path.parent / "drawn"
        reference_config = config_of(num)
        measured(reference_config, engine, reference=gpt_at(url), cache=cache)
    [file] = cache.glob("samples-*.jsonl")
    drawn = [text for text in read_reference_samples(str(file)).texts if not text.has_end]
    content = {
        "model_name": name,
        "texts": [f"<|endoftext|>{text.text}" for text in drawn],
        "logprobs": [text.logprob for text in drawn],
    }
    path.write_text(json.dumps(content))
    return drawn


def test_the_originals_cache_is_read_and_its_kl_has_the_originals_name(engines, tmp_path):
    path = tmp_path / "davinci_4_tokens_cache.json"
    drawn = original_cache(path, engines["gpt"], num=60)
    samples = read_reference_samples(str(path))
    assert (samples.reference, samples.is_openai, len(samples.texts)) == ("davinci", True, len(drawn))
    kl = measured(config_of(), engines["mle"], reference=samples, cache=tmp_path / "cache")
    [expected] = [
        measure_drawn(SimpleNamespace(texts=drawn, reference="gpt", prompt=""), arm_of(engines["mle"])).kl.per_sequence
    ]
    assert kl.per_sequence[0] == pytest.approx(expected.mean)
    rows = kl_rows(kl)
    assert rows["KL/KL(GPT3, model)"] == rows["KL/davinci/per_sequence"] == kl.per_sequence[0]
    assert "KL/davinci/per_token" not in rows
    assert "no figure per token" in kl.note
    ended = {"model_name": "davinci", "texts": ["<|endoftext|>ab<|endoftext|>", "<|endoftext|>"], "logprobs": [-3, -1]}
    path.write_text(json.dumps(ended))
    first, second = read_reference_samples(str(path)).texts
    assert (first.text, first.has_end, first.logprob) == ("ab", True, -3.0)
    assert second.error.startswith("empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"model_name": "davinci", "texts": ["a"]}', "'logprobs'"),
        ('{"model_name": "davinci", "texts": ["a"], "logprobs": [-1, -2]}', "same length"),
        ('{"format": "phf-reference-samples-9"}', "phf-reference-samples-9"),
        ('{"format": "phf-reference-samples-1", "reference": "gpt"}\n{"text": "a"}', "logprob"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(DataError, match=f"holds no texts of a reference .*{message}"):
        read_reference_samples(str(path))
    with pytest.raises(ConfigError, match="no such file"):
        read_reference_samples(str(tmp_path / "none"))


def test_texts_without_a_log_probability_are_counted_with_their_reason_and_are_no_zeros(engines, tmp_path):
    server = LogprobServer(engines["gpt"])
    bad = iter([None, -9999.0])

    def alter(choice):
        if choice["index"] == 3 and choice["logprobs"]["token_logprobs"]:
            choice["logprobs"]["token_logprobs"][0] = next(bad, -0.5)
        return choice

    server.alter = alter
    with listening(server.app) as url:
        kl = measured(config_of(32), engines["mle"], reference=gpt_at(url), cache=tmp_path)
    assert kl.failures == {
        "a token has the log-probability None": 1,
        "a token has the log-probability -9999.0": 1,
    }
    assert kl.num_samples == 30
    assert kl_rows(kl)["KL/gpt/num_failed"] == 2


@pytest.mark.parametrize("chat", [False, True])
def test_a_server_without_log_probabilities_is_refused_before_anything_is_drawn(engines, tmp_path, chat):
    server = LogprobServer(engines["gpt"], chat=chat)
    server.alter = lambda choice: {**choice, "logprobs": None}
    with listening(server.app) as url, pytest.raises(ConfigError, match="gives no log-probabilities of gpt"):
        _check_kl(config_of(), [arm_of(engines["mle"])], reference=gpt_at(url), cache=str(tmp_path))
    assert len(server.bodies) == 1
    assert not list(tmp_path.iterdir())


def test_an_interrupted_reference_is_asked_only_for_what_is_missing(engines, tmp_path):
    server = LogprobServer(engines["gpt"])
    refusal = JSONResponse({"error": {"message": "enough"}}, status_code=400)
    server.trouble = lambda number: refusal if number >= 4 else None
    with listening(server.app) as url:
        with pytest.raises(ServiceError, match="enough"):
            measured(config_of(96), engines["mle"], reference=gpt_at(url), cache=tmp_path)
        server.trouble = lambda number: None
        server.bodies.clear()
        resumed = measured(config_of(96), engines["mle"], reference=gpt_at(url), cache=tmp_path)
        assert sum(body["n"] for body in server.bodies if body["max_tokens"] == LENGTH) == 96 - 2 * 16
        whole = measured(config_of(96), engines["mle"], reference=gpt_at(url), cache=tmp_path / "anew")
    assert resumed == whole
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".json", ".jsonl"}
    assert not list(tmp_path.glob("*.parts"))


def test_other_tokens_leave_figures_per_byte_and_say_so(engines, tmp_path):
    tokenizer = tiny_tokenizer()
    model = Engine(tiny_gpt2(tokenizer, seed=1, vocab_size=len(tokenizer)), tokenizer)
    server = LogprobServer(engines["gpt"])
    with listening(server.app) as url:
        kl = measured(config_of(64), model, reference=gpt_at(url), cache=tmp_path)
    assert kl.per_token is None
    assert kl.per_byte[0] > 0
    assert "other tokens, so there is no figure per token" in kl.note


def write_letters(folder, engine):
    engine.model.save_pretrained(folder)
    engine.strings.tokenizer.save_pretrained(folder)
    write_info(folder, CheckpointInfo(seq_length=16))
    return folder


def test_beside_the_training_the_reference_is_asked_once_for_all_steps(engines, tmp_path):
    run = RunDirectory(tmp_path / "run")
    for step, name in ((3, "mle"), (6, "other")):
        run.hand_out_weights(step, lambda folder, name=name: write_letters(folder, engines[name]))
    steps = {"every_n_steps": 3, "run_on_train_start": False}

    def job_of(**reference):
        return plan_evaluations(config_of(**steps, **reference), run, num_steps=6, resources={"CPU": 1.0})

    server = LogprobServer(engines["gpt"])
    with listening(server.app) as url:
        job = job_of(reference=f"gpt={url}")
        first = evaluate_weights(job, 3)
        num_asked = len(server.bodies)
        second = evaluate_weights(job, 6)
        assert len(server.bodies) == num_asked
    for row, name in ((first, "mle"), (second, "other")):
        exact = exact_kl(engines["gpt"], engines[name], length=LENGTH, with_end=True)
        assert abs(row["KL/gpt/per_sequence"] - exact) < 3 * row["KL/gpt/per_sequence_error"]
        assert "KL/KL(GPT3, model)" not in row
    path = tmp_path / "davinci_4_tokens_cache.json"
    original_cache(path, engines["gpt"], num=60)
    job = job_of(reference_samples=str(path))
    # The node that evaluates may not see the user's file.
    path.unlink()
    row = evaluate_weights(job, 3)
    assert row["KL/KL(GPT3, model)"] == row["KL/davinci/per_sequence"] > 0
    with pytest.raises(ConfigError, match="no such file"):
        job_of(reference_samples=str(path))
    with pytest.raises(ConfigError, match="both a reference and reference_samples"):
        job_of(reference_samples=str(path), reference=f"gpt={url}")


@pytest.mark.timeout(300)
def test_the_command_asks_a_reference_once_and_takes_a_file_of_texts(local_ray, engines, tmp_path, capsys, monkeypatch):
    path = tmp_path / "davinci_4_tokens_cache.json"
    original_cache(path, engines["gpt"], num=64)
    monkeypatch.setenv("THEIRS", "sesame")
    gpt, scores = LogprobServer(engines["gpt"]), Server()

    def rows_of(names, *more):
        output = tmp_path / "-".join(names)
        command = ["--task", str(task), "--output", str(output), "--model"]
        command += [str(write_letters(tmp_path / name, engines[name])) for name in names]
        command += ["--scores-url", scores.url, "--allow-other-scorer", "--max-clients", "1", *more]
        assert evaluate_lm.main(command) == 0
        return json.loads((output / "report.json").read_text())["table"]

    with listening(gpt.app) as url:
        task = tmp_path / "task.yml"
        task.write_text(
            "generation: {scenario_configs: [{name: any, num_samples: 4, generate_kwargs: {max_length: 8}}]}\n"
            "scoring: {scorers: [{class_name: PEP8Scorer}]}\n"
            "kl_gpt3_callback: {num_samples: 64, max_tokens: 4}\n"
            f"key_envs: {{'{url}': THEIRS}}\n"
        )
        cache = ["--reference", f"gpt={url}", "--reference-cache", str(tmp_path / "cache")]
        try:
            with pytest.raises(ConfigError, match="give a reference to ask, or a file of its texts"):
                rows_of(["mle"], *cache, "--reference-samples", str(path))
            first, second = rows_of(["mle", "other"], *cache)
            assert sum(body["n"] for body in gpt.bodies) == 64 + 2, "once for both, and twice one to see what it gives"
            assert gpt.keys == {"Bearer sesame"}, "of the variable that the task names"
            assert 0 < first["kl_per_byte"] != second["kl_per_byte"] > 0
            capsys.readouterr()
            [itself] = rows_of(["gpt"], "--reference-samples", str(path))
            assert itself["kl_per_byte"] == pytest.approx(0, abs=1e-4)
            assert "no figure per token" in capsys.readouterr().out
        finally:
            scores.stop()
