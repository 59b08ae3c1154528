"""The evaluation pipeline against a small server that speaks the contract over TCP."""

import contextlib
import json
import logging
import math
import socket
import threading
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
import ray
from evaluation_server import IDENTITY, Server, listening, strict
from fastapi.responses import JSONResponse
from tiny_models import BAD, GOOD, tiny_gpt2, tiny_tokenizer, write_checkpoint

from jobs.evaluate_lm import arm_of
from jobs.model_arguments import parse_arms, parse_models
from phf_ray.checkpoint import CheckpointInfo, Control, read_info, write_info
from phf_ray.config import Scenario, parse_config
from phf_ray.errors import ConfigError, DataError, IncompleteError, ServiceError
from phf_ray.evaluation.arms import Arm, ScoresServer, check_arm, described
from phf_ray.evaluation.asking import run_here
from phf_ray.evaluation.kl.arms import has_control_per_line
from phf_ray.evaluation.on_ray import label_selector, run_on_ray
from phf_ray.evaluation.probe import Probe
from phf_ray.evaluation.prompts import prompt_order, read_prompts, samples_per_prompt
from phf_ray.evaluation.report.figures import recompute
from phf_ray.evaluation.requests import SampleRequest, draw_unit, request_body
from phf_ray.evaluation.run import EvaluationOptions, evaluate_arms
from phf_ray.evaluation.scorer_check import check_scorer
from phf_ray.generation.engine import Engine
from phf_ray.generation.requests import EngineSettings
from phf_ray.http.client import Client, RefusedError
from phf_ray.scorers.build import build_scorer
from serve.api.application import build_app
from serve.backends import Backend
from serve.engines.local import LocalModel
from serve.engines.scorer import LocalScorer
from serve.schemas import HealthResponse
from serve.settings import ServedModel, ServedScorer


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"def f{number}(a, b):"}) + "\n" for number in range(10)))
    return path


KWARGS = {"max_length": 20, "min_length": 2, "temperature": 0.7, "top_p": 0.9}


def make_config(*, prompts=None, num_samples=40, kwargs=KWARGS, **scenario):
    scenarios = [
        {"name": "unconditional", "num_samples": num_samples, "num_hits_threshold": 0, "generate_kwargs": kwargs}
    ]
    if prompts is not None:
        scenarios.append(
            {
                "name": "functions",
                "num_samples": 24,
                "prompts_path": str(prompts),
                "use_prompt_for_scoring": True,
                "generate_kwargs": kwargs,
            }
        )
    scenarios[-1] |= scenario
    return parse_config(
        {
            "scoring": {"scorers": [{"class_name": "PEP8Scorer"}], "max_failed_fraction": 0.2},
            "generation": {
                "batch_size": 32,
                "scenario_configs": scenarios,
                "metrics_configs": [{"class_name": "Compilability"}],
            },
        }
    )


CONTROL = Control(good="<|good|>", bad="<|bad|>", policy="retag")


def make_arms(url, **changes):
    conditional = {"url": url, "model": "conditional", "checkpoint": CheckpointInfo(control=CONTROL, scorer=IDENTITY)}
    return [
        Arm(name="mle", url=url, model="mle", **changes),
        Arm(name="conditional:good", control="good", **conditional),
        Arm(name="conditional:bad", control="bad", **conditional),
    ]


def run(server, output, config=None, *, arms=None, runner=run_here, **options):
    return evaluate_arms(
        config or make_config(),
        arms=arms or make_arms(server.url),
        scores=ScoresServer(server.url, "pep8"),
        output=str(output),
        options=EvaluationOptions(**{"seeds": (0, 1), "patience_s": 5.0} | options),
        runner=runner,
    )


# -- The whole, over TCP ----------------------------------------------------------------------------------------------


def test_samples_are_drawn_scored_and_reported_exactly_as_many_as_asked(local_ray, server, prompts, tmp_path):
    report = run(server, tmp_path / "out", make_config(prompts=prompts), runner=run_on_ray)
    table = {(row["scenario"], row["arm"]): row for row in report["table"]}
    assert {row["num_samples"] for (scenario, _), row in table.items() if scenario == "unconditional"} == {80}
    assert {row["num_samples"] for (scenario, _), row in table.items() if scenario == "functions"} == {48}
    assert (
        server.num_asked == server.num_scored - 1 == 3 * (80 + 48)
    )  # one text was scored to learn the scorer's identity
    assert table["unconditional", "conditional:bad"]["score"] > 2 * table["unconditional", "conditional:good"]["score"]

    samples = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    of_prompts = [s for s in samples if s["scenario"] == "functions"]
    for arm in ("mle", "conditional:good", "conditional:bad"):
        mine = [s for s in of_prompts if s["arm"] == arm and s["seed"] == 1]
        counts = Counter(s["prompt_index"] for s in mine)
        assert sorted(counts.values()) == [2] * 6 + [3] * 4
        assert [s["prompt"] for s in mine] == [s["prompt"] for s in of_prompts if s["arm"] == "mle" and s["seed"] == 0]
    for sample in samples:
        whole = sample["prompt"] + sample["text"] if sample["scenario"] == "functions" else sample["text"]
        assert sample["score"] == whole.count("x") / max(1, len(whole))
        assert sample["num_tokens"] == len(sample["text"].split(" "))
    assert len({s["text"] for s in samples if s["scenario"] == "unconditional"}) > 150

    assert json.loads(json.dumps(recompute(str(tmp_path / "out")))) == json.loads(
        (tmp_path / "out/report.json").read_text()
    )
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["complete"] is True
    assert not (tmp_path / "out" / "drawn").exists()


def test_max_length_counts_end_of_text_prefix_and_prompt(server, prompts, tmp_path):
    run(server, tmp_path / "out", make_config(prompts=prompts), seeds=(0,))
    asked = {(b["model"], b.get("control"), bool(b["prompt"]), b["max_tokens"]) for b in server.completions}
    # max_length 20; the prompt `def f0(a, b):` has 3 tokens; arms with a control token have one token less.
    assert asked == {
        ("mle", None, False, 19),
        ("mle", None, True, 16),
        ("conditional", "good", False, 18),
        ("conditional", "good", True, 15),
        ("conditional", "bad", False, 18),
        ("conditional", "bad", True, 15),
    }


def test_arms_get_the_same_prompts_and_seeds(server, prompts, tmp_path):
    run(server, tmp_path / "out", make_config(prompts=prompts))
    by_arm = {
        arm: sorted(
            (b["prompt"], b["seed"], b["n"]) for b in server.completions if (b["model"], b.get("control")) == arm
        )
        for arm in [("mle", None), ("conditional", "good"), ("conditional", "bad")]
    }
    assert by_arm["mle", None] == by_arm["conditional", "good"] == by_arm["conditional", "bad"]
    seeds = [seed for _, seed, _ in by_arm["mle", None]]
    assert len(set(seeds)) == len(seeds)


def refuse_after(limit):
    return lambda number, body: (
        JSONResponse({"error": {"message": "broken"}}, status_code=400) if number >= limit else None
    )


def test_interrupted_and_started_again_only_what_is_missing_is_asked_for(local_ray, server, tmp_path):
    whole = run(server, tmp_path / "whole")
    num_all = server.num_asked
    server.completions.clear()
    server.troubles = refuse_after(8)
    with pytest.raises(ServiceError, match="broken"):
        run(server, tmp_path / "out", runner=run_on_ray)
    num_first = server.num_asked
    assert num_all / 3 < num_first < num_all
    assert not (tmp_path / "out" / "report.json").exists()
    server.troubles = lambda number, body: None
    resumed = run(server, tmp_path / "out")
    # Nothing was asked for twice, and nothing is missing.
    assert server.num_asked == num_all
    assert len({(b["model"], b.get("control"), b["seed"]) for b in server.completions}) == len(server.completions)
    assert resumed == whole
    for name in ("samples.parquet", "report.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    run(server, tmp_path / "out")
    assert server.num_asked == num_all


def asking_actors(state=None):
    """Ids of the Ray Data actors of this cluster, also of those that have ended."""
    table = ray._private.state.actors(actor_state_name=state)
    return {name for name, actor in table.items() if "MapWorker" in actor["ActorClassName"]}


@contextlib.contextmanager
def counted_actors():
    """How many Ray Data actors are alive, again and again while this is open."""
    counts, is_over = [], threading.Event()

    def count():
        while not is_over.wait(0.1):
            counts.append(len(asking_actors("ALIVE")))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def quick_once(server, condition):
    """The server is slow until then: on a busy machine it takes a while until there are more actors."""
    is_over = threading.Event()

    def watch():
        while not (condition() or is_over.wait(0.1)):
            pass
        server.delay_s = 0.0

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_actors_that_ask_grow_in_number_with_what_the_server_leaves_waiting(local_ray, server, tmp_path):
    before = asking_actors()
    one_request = make_config(num_samples=8)
    run(server, tmp_path / "small", one_request, arms=make_arms(server.url)[:1], runner=run_on_ray, seeds=(0,))
    assert len(asking_actors() - before) == 1
    server.delay_s = 5.0
    with counted_actors() as counts, quick_once(server, lambda: 3 in counts):
        run(server, tmp_path / "slow", make_config(num_samples=320), runner=run_on_ray, max_clients=3)
        deadline = time.monotonic() + 240
        while counts[-1] and time.monotonic() < deadline:
            time.sleep(0.1)
    # To the most that may be, and none is left behind.
    assert [max(counts), counts[-1]] == [3, 0]


def test_a_server_on_this_machine_alone_is_asked_from_this_node_alone(local_ray):
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    assert ray.nodes()[0]["Labels"].items() >= here.items()
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/v1", "http://[::1]:8000"):
        assert label_selector(["http://models.example:8000", url]) == here
    assert label_selector(["http://10.0.0.7:8000", "https://models.example/v1"]) == {}


def test_a_busy_server_is_asked_again_when_it_says(server, tmp_path):
    turned_away = []

    def busy(number, body):
        if len(turned_away) < 5:
            turned_away.append(time.monotonic())
            status = (429, 503, 408)[len(turned_away) % 3]
            return JSONResponse({"error": {"message": "full"}}, status_code=status, headers={"Retry-After": "0.3"})
        return None

    server.troubles = busy
    report = run(server, tmp_path / "out", arms=make_arms(server.url)[:1], seeds=(0,))
    assert report["table"][0]["num_missing"] == 0
    assert len(turned_away) == 5


def test_a_few_failures_leave_an_incomplete_report_that_says_so_and_a_rerun_completes_it(server, tmp_path):
    failing = {}

    def down_for_one(number, body):
        key = (body["model"], body["seed"])
        failing.setdefault("key", key)
        return JSONResponse({"error": {"message": "lost"}}, status_code=500) if key == failing["key"] else None

    server.troubles = down_for_one
    config = make_config(num_samples=128)
    arms = make_arms(server.url)[:1]
    with pytest.raises(IncompleteError, match="16 samples could not be drawn"):
        run(server, tmp_path / "out", config, arms=arms, seeds=(0,), patience_s=0.5)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["complete"], summary["num_missing"], summary["num_samples"]) == (False, 16, 112)
    row = json.loads((tmp_path / "out" / "report.json").read_text())["table"][0]
    assert (row["num_missing"], row["num_scored"]) == (16, 112)
    server.troubles = lambda number, body: None
    asked = server.num_asked
    report = run(server, tmp_path / "out", config, arms=arms, seeds=(0,))
    assert report["table"][0]["num_missing"] == 0
    assert server.num_asked == asked + 16


def refuse_prompt(text, status=400):
    refusal = {"error": {"message": "content management policy"}}
    return lambda number, body: JSONResponse(refusal, status_code=status) if text in body["prompt"] else None


def test_a_prompt_that_a_filter_refuses_is_missing_and_ends_nothing(server, prompts, tmp_path):
    arms, config = make_arms(server.url)[:1], make_config(prompts=prompts)
    server.troubles = refuse_prompt("f3(")
    for _ in range(2):
        with pytest.raises(IncompleteError, match=r"2 samples could not be drawn.*content management policy"):
            run(server, tmp_path / "out", config, arms=arms, seeds=(0,))
        rows = json.loads((tmp_path / "out" / "report.json").read_text())["table"]
        assert [row["num_missing"] for row in rows] == [0, 2]
        assert server.num_asked == 40 + 24 - 2
    server.troubles = lambda number, body: None
    run(server, tmp_path / "out", config, arms=arms, seeds=(0,))
    assert server.num_asked == 40 + 24


def only_prompts(prompts, **changes):
    """One request at a time, the prompts' scenario alone."""
    config = make_config(prompts=prompts)
    generation = {"scenario_configs": config.generation.scenario_configs[1:], "batch_size": 1}
    return config.model_copy(update={"generation": config.generation.model_copy(update=generation), **changes})


def test_a_prompt_that_a_filter_refuses_ends_nothing_also_where_it_comes_first(server, prompts, tmp_path):
    arms, config = make_arms(server.url)[:1], only_prompts(prompts)
    tried = []

    def refuse_the_first(number, body):
        tried.append(body["prompt"])
        return refuse_prompt(tried[0])(number, body)

    server.troubles = refuse_the_first
    for _ in range(2):
        with pytest.raises(IncompleteError, match=r"3 samples could not be drawn.*content management policy"):
            run(server, tmp_path / "out", config, arms=arms, seeds=(0,))
        assert server.num_asked == 24 - 3
    assert len(set(tried)) == 10
    assert tried.count(tried[0]) == 2


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_a_server_that_refuses_every_prompt_is_no_filter(server, tmp_path, num_prompts):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": f"def f{number}("}) + "\n" for number in range(num_prompts)))
    server.troubles = refuse_prompt("")
    scoring = make_config().scoring.model_copy(update={"max_failed_fraction": 1.0})
    config = only_prompts(prompts, scoring=scoring)
    with pytest.raises(ServiceError, match="status 400: content management policy"):
        run(server, tmp_path / "out", config, arms=make_arms(server.url)[:1], seeds=(0,))
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize(("text", "status"), [("", 400), ("def ", 404)])
def test_a_server_that_refuses_more_than_a_prompt_ends_the_job_at_once(server, prompts, tmp_path, text, status):
    tried = []
    refuse = refuse_prompt(text, status)

    def trouble(number, body):
        tried.append(body)
        return refuse(number, body)

    server.troubles = trouble
    with pytest.raises(ServiceError, match=f"status {status}: content management policy"):
        run(server, tmp_path / "out", only_prompts(prompts), arms=make_arms(server.url)[:1], seeds=(0,))
    assert len(tried) == (2 if status == 400 else 1), "one prompt may be what a filter refuses"
    assert not (tmp_path / "out" / "report.json").exists()


def test_an_evaluation_that_was_killed_while_tidying_up_is_over(server, tmp_path, monkeypatch):
    def killed(store):
        parts = sorted((tmp_path / "out" / "drawn").iterdir())
        assert len(parts) > 1
        parts[0].unlink()
        raise KeyboardInterrupt

    arms = make_arms(server.url)[:1]
    with monkeypatch.context() as patched:
        patched.setattr("phf_ray.evaluation.store.SampleStore.tidy", killed)
        with pytest.raises(KeyboardInterrupt):
            run(server, tmp_path / "out", arms=arms)
    names = ("samples.parquet", "report.json", "report.html")
    before, asked = [(tmp_path / "out" / name).read_bytes() for name in names], server.num_asked
    assert run(server, tmp_path / "out", arms=arms)["table"][0]["num_missing"] == 0
    assert server.num_asked == asked
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == before
    assert not (tmp_path / "out" / "drawn").exists()


def test_too_many_failures_stop_the_job(server, tmp_path):
    server.troubles = lambda number, body: JSONResponse({"error": {"message": "lost"}}, status_code=500)
    with pytest.raises(ServiceError, match=r"more than scoring\.max_failed_fraction allows"):
        run(server, tmp_path / "out", arms=make_arms(server.url)[:1], patience_s=0.3)
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_text_without_a_score_is_no_zero(server, tmp_path):
    server.unscored = lambda text: "RecursionError: deep" if text.startswith("class") else None
    row = run(server, tmp_path / "out", arms=make_arms(server.url)[:1])["table"][0]
    assert row["num_unscored"] > 0
    assert row["num_scored"] + row["num_unscored"] == 80
    assert row["unscored"] == {"RecursionError": row["num_unscored"]}


def test_models_and_scorers_of_our_own_give_the_same_report_however_the_requests_are_grouped(tmp_path):
    tokenizers = {"mle": tiny_tokenizer(), "conditional": tiny_tokenizer(control=True)}
    infos = {
        "mle": CheckpointInfo(),
        "conditional": CheckpointInfo(control=Control(good=GOOD, bad=BAD, policy="retag")),
    }
    models = {
        name: LocalModel(
            Engine(tiny_gpt2(tokenizer), tokenizer, info=infos[name], settings=EngineSettings(max_batch=8))
        )
        for name, tokenizer in tokenizers.items()
    }
    scorer = LocalScorer(ServedScorer(scorer={"class_name": "PEP8Scorer"}))

    async def health():
        return HealthResponse(status="ok", deployments={})

    config = make_config()
    grouped = config.model_copy(update={"generation": config.generation.model_copy(update={"batch_size": 1})})
    with listening(build_app(Backend(models, {"pep8": scorer}, health), access_log=False)) as url:
        arms = [
            Arm(name="mle", url=url, model="mle", checkpoint=infos["mle"]),
            Arm(name="conditional:bad", url=url, model="conditional", control="bad", checkpoint=infos["conditional"]),
        ]
        reports = [
            evaluate_arms(
                one,
                arms=arms,
                scores=ScoresServer(url, "pep8"),
                output=str(tmp_path / name),
                options=EvaluationOptions(seeds=(0, 1)),
                runner=run_here,
            )
            for name, one in (("first", config), ("second", grouped))
        ]
    assert reports[0] == reports[1]
    samples = pq.read_table(tmp_path / "first" / "samples.parquet").to_pylist()
    assert len(samples) == 160
    assert len({sample["text"] for sample in samples}) > 150
    # The scores are those of the scorer on the text that is stored.
    expected = build_scorer({"class_name": "PEP8Scorer"}).score_all([sample["text"] for sample in samples])
    assert [sample["score"] for sample in samples] == [scored.score for scored in expected]


def test_a_server_with_openais_models_and_completions_alone_is_evaluated(server, prompts, tmp_path):
    asked = []
    config = make_config(prompts=prompts, kwargs={"max_new_tokens": 6, "top_p": 0.9})
    with listening(strict(asked)) as url:
        report = run(server, tmp_path / "out", config, arms=[Arm("gpt", url, "gpt")], seeds=(0,))
    rows = {row["scenario"]: row for row in report["table"]}
    assert {name: (row["num_samples"], row["num_missing"]) for name, row in rows.items()} == {
        "unconditional": (40, 0),
        "functions": (24, 0),
    }
    # No token that texts start with is known, so nothing is sent where there is no prompt.
    assert {body["prompt"] for body in asked} == {"", *read_prompts(str(prompts))}
    assert {body["max_tokens"] for body in asked} == {6}


def test_what_such_a_server_can_not_be_asked_for_is_named_before_the_first_sample(server, tmp_path):
    asked = []
    with listening(strict(asked)) as url:
        arms = [Arm("gpt", url, "gpt")]
        with pytest.raises(ConfigError, match=r"gpt can't be asked for at least 2 tokens; set .*min_length: 0"):
            run(server, tmp_path / "out", make_config(kwargs={"max_new_tokens": 6, "min_length": 2}), arms=arms)
        with pytest.raises(ConfigError, match=r"which max_length needs; use a server with POST /tokenize"):
            run(server, tmp_path / "out", make_config(kwargs={"max_length": 20}), arms=arms)
    assert asked == []
    assert not (tmp_path / "out").exists()


# -- Before the first sample ------------------------------------------------------------------------------------------


def test_a_server_that_is_down_is_named_before_the_first_sample(server, tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.evaluation.arms.CHECK_PATIENCE_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServiceError, match=rf"127\.0\.0\.1:{port}.* is the server running\?"):
        run(server, tmp_path / "out", arms=make_arms(f"http://127.0.0.1:{port}"))
    assert server.completions == []
    assert not (tmp_path / "out").exists()


def test_wrong_key_unknown_model_and_unknown_scorer_are_named_before_the_first_sample(server, tmp_path):
    with pytest.raises(RefusedError, match="401: no such key; set a key that the server accepts"):
        run(server, tmp_path / "out", arms=make_arms(server.url, key="wrong"))
    with pytest.raises(ConfigError, match="serves no model 'gpt'; it serves conditional, mle"):
        run(server, tmp_path / "out", arms=[Arm(name="a", url=server.url, model="gpt")])
    with pytest.raises(RefusedError, match="no such scorer: try pep8"):
        evaluate_arms(
            make_config(),
            arms=make_arms(server.url),
            scores=ScoresServer(server.url, "toxic"),
            output=str(tmp_path / "out"),
            runner=run_here,
        )
    assert server.completions == []


def test_a_scorer_that_was_not_trained_on_is_refused_and_another_version_of_it_is_warned_of(server, tmp_path, caplog):
    def arm(**changed):
        return Arm(name="a", url=server.url, model="mle", checkpoint=CheckpointInfo(scorer=IDENTITY | changed))

    with pytest.raises(
        ConfigError, match=r"a was trained on another scorer .*PIIScorer.*PEP8Scorer.*--allow-other-scorer"
    ):
        run(server, tmp_path / "out", arms=[arm(class_name="PIIScorer")])
    with pytest.raises(ConfigError, match=r"a was trained on another scorer \(settings: trained on .*en_GB"):
        run(server, tmp_path / "out", arms=[arm(settings={"locale": "en_GB"})])
    assert server.completions == []
    for number, (arms, options) in enumerate(
        [
            ([arm(class_name="PIIScorer")], {"allow_other_scorer": True}),
            ([arm(versions={})], {}),
            ([arm(name="style")], {}),
        ]
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(server, tmp_path / str(number), arms=arms, **options)
        assert "THE SCORER IS NOT THE ONE" in caplog.text


def test_a_directory_with_another_evaluation_is_refused_or_emptied(server, tmp_path):
    arms = make_arms(server.url)[:1]
    run(server, tmp_path / "out", arms=arms)
    with pytest.raises(ConfigError, match="evaluation with other requests; choose another --output"):
        run(server, tmp_path / "out", arms=arms, seeds=(5,))
    again = run(server, tmp_path / "out", arms=arms, seeds=(5,), restart=True)
    assert again["seeds"] == [5]
    changed = [Arm(name="mle", url=server.url, model="mle", fingerprint="other weights")]
    with pytest.raises(ConfigError, match="evaluation with other arms"):
        run(server, tmp_path / "out", arms=changed, seeds=(5,))


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("names", [["summary.json"], ["plan.json", "summary.json"]])
def test_files_of_a_directory_that_is_no_evaluations_are_left_alone(server, tmp_path, names, restart):
    for name in names:
        (tmp_path / name).write_text('{"num_steps": 10}')
    with pytest.raises(ConfigError, match=r"holds summary\.json.* but not from an evaluation.*choose another --output"):
        run(server, tmp_path, arms=make_arms(server.url)[:1], restart=restart)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert {path.read_text() for path in tmp_path.iterdir()} == {'{"num_steps": 10}'}
    assert server.completions == []


def test_a_url_behind_which_the_model_changed_is_another_arm(server, tmp_path):
    arms = make_arms(server.url)[:1]
    run(server, tmp_path / "out", arms=arms)
    asked = server.num_asked
    server.models["mle"] = {"created": 5, "permission": [{"id": "modelperm-1"}]}
    run(server, tmp_path / "out", arms=arms)
    assert server.num_asked == asked
    for changed in ({"step": 999}, {"fingerprint": "other weights"}):
        server.models["mle"] = changed
        with pytest.raises(ConfigError, match="evaluation with other arms"):
            run(server, tmp_path / "out", arms=arms)


@pytest.fixture
def checkpoint(tmp_path):
    directory = write_checkpoint(tmp_path / "cond", control="retag")
    info = read_info(directory)
    write_info(directory, info.model_copy(update={"scorer": IDENTITY | {"unit": "other"}}))
    return directory


def test_a_checkpoint_is_the_same_arm_as_a_directory_and_behind_a_url(checkpoint, server):
    async def health():
        return HealthResponse(status="ok", deployments={})

    config = parse_config({"scoring": {"segmenter": "lines"}})
    models = {"cond": LocalModel.load(ServedModel(name="cond", path=str(checkpoint)))}
    with listening(build_app(Backend(models, {}, health), access_log=False)) as url:
        arms = []
        for text in (f"cond={checkpoint}", f"cond={url}"):
            listed = parse_models([text])
            [(name, control)] = parse_arms([], listed)
            arm = arm_of(listed[name], control, base_url=url)
            arms.append(described(arm, check_arm(arm)))
        here, there = arms
        assert (here.fingerprint, here.checkpoint, here.control) == (there.fingerprint, there.checkpoint, there.control)
        assert has_control_per_line(here.checkpoint, config) is has_control_per_line(there.checkpoint, config) is True
        for prefix in (BAD, GOOD, "# text"):
            scenario = Scenario(name="s", prefix=prefix, generate_kwargs={"max_length": 20})
            ways = [Probe(arm, check_arm(arm)).prepare("", scenario) for arm in arms]
            assert ways[0] == ways[1]
        for arm in arms:
            with pytest.raises(ConfigError, match=r"cond.* was trained on another scorer .*unit"):
                check_scorer(ScoresServer(server.url, "pep8"), [arm], allow_other=False)


def test_a_model_listed_by_its_id_alone_is_asked_for_its_card(server):
    server.models["loading"] = {"max_model_len": None}
    server.cards["loading"] = {"fingerprint": "0123"}
    assert check_arm(Arm("a", server.url, "loading"))["fingerprint"] == "0123"


def test_what_a_server_says_of_a_checkpoint_must_be_known():
    card = {"id": "m", "owned_by": "phf-ray", "checkpoint": {"step": "many"}}
    with pytest.raises(ServiceError, match="describes m in a way that this version does not know"):
        described(Arm("m", "http://x", "m"), card)
    assert described(Arm("m", "http://x", "m"), card | {"owned_by": "vllm"}).checkpoint is None


# -- Parts ------------------------------------------------------------------------------------------------------------


def test_samples_per_prompt_are_as_equal_as_possible():
    assert samples_per_prompt(10, 4) == [3, 3, 2, 2]
    assert samples_per_prompt(4, 4) == [1, 1, 1, 1]


def test_the_order_of_prompts_follows_from_the_scenario_alone():
    assert prompt_order(50, scenario="a") == prompt_order(50, scenario="a") != prompt_order(50, scenario="b")
    assert sorted(prompt_order(50, scenario="a")) == list(range(50))


def prompted(prompts, **scenario):
    return make_config(prompts=prompts, **scenario).generation.scenario_configs[1]


@pytest.mark.parametrize(
    ("control", "scenario", "expected"),
    [
        (None, {}, ("def f(a):", None, 17 - 1)),
        ("bad", {}, ("def f(a):", "bad", 17 - 1)),
        ("none", {}, ("def f(a):", "none", 17)),
        (None, {"prefix": "<|bad|>", "prompt_before_control": True}, ("def f(a):", "bad", 17 - 1)),
        ("good", {"prefix": "<|bad|>", "prompt_before_control": True}, ("def f(a):", "good", 17 - 1)),
        # The control token is then glued to the last word, which the server's tokenizer counts as one token.
        (None, {"prefix": "<|bad|>"}, ("def f(a):<|bad|>", "none", 17)),
        ("good", {"prefix": "<|bad|>"}, ("def f(a):<|good|>", "none", 17)),
        ("none", {"prefix": "<|bad|>"}, ("def f(a):", "none", 17)),
        (None, {"prefix": "# good\n", "prompt_before_control": True}, ("# good\ndef f(a):", None, 15 - 1)),
        (None, {"prefix": "# good\n"}, ("def f(a):# good\n", None, 16 - 1)),
    ],
)
def test_a_control_token_is_asked_for_and_any_other_prefix_is_text(server, prompts, control, scenario, expected):
    arm = Arm(
        name="a", url=server.url, model="conditional", control=control, checkpoint=CheckpointInfo(control=CONTROL)
    )
    assert Probe(arm, {"owned_by": "phf-ray"}).prepare("def f(a):", prompted(prompts, **scenario)) == expected


def test_a_model_without_control_tokens_gets_no_control_and_keeps_its_room(server, prompts):
    probe = Probe(Arm(name="mle", url=server.url, model="mle", checkpoint=CheckpointInfo()), {"owned_by": "phf-ray"})
    assert probe.prepare("def f(a):", prompted(prompts)) == ("def f(a):", None, 17)


def test_prompts_without_room_are_left_out_for_all_arms(server, tmp_path):
    path = tmp_path / "prompts.jsonl"
    long = " ".join("a" * 17)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["a b", long, "c d"]))
    # 1 + 17 + 2 = 20 would fit without a control token, 21 does not with one.
    report = run(server, tmp_path / "out", make_config(prompts=path, num_samples=2), seeds=(0,))
    scenario = report["scenarios"][1]
    assert (scenario["num_prompts"], scenario["num_prompts_dropped"]) == (2, 1)
    assert long not in {body["prompt"] for body in server.completions}
    assert "1 were left out" in (tmp_path / "out" / "report.html").read_text()


def test_no_room_at_all_is_an_error_before_the_first_sample(server, tmp_path):
    config = make_config(generate_kwargs={"max_length": 2, "min_length": 2})
    with pytest.raises(ConfigError, match="max_length=2 leaves no room for 2 new tokens"):
        run(server, tmp_path / "out", config)


def unit(**changes):
    values = {
        "arm": "a", "scenario": "s", "seed": 0, "start": 0, "count": 4, "prompt_index": None, "prompt": "", "sent": "",
        "control": None, "max_tokens": 5,
    }  # fmt: skip
    return SampleRequest(**values | changes)


def test_requests_are_openais(prompts):
    scenario = prompted(prompts)
    arm = Arm(name="a", url="u", model="m")
    openais = {
        "model": "m",
        "prompt": "",
        "n": 4,
        "max_tokens": 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": unit().request_seed,
        "logprobs": 0,
    }
    # OpenAI's own server refuses a field that is not its own, such as vLLM's `min_tokens`.
    assert request_body(unit(max_tokens=1), scenario, described(arm, {"owned_by": "openai"})) == openais
    for owner in ("vllm", "phf-ray"):
        body = request_body(unit(max_tokens=1), scenario, described(arm, {"owned_by": owner}))
        assert body == openais | {"min_tokens": 1, "top_k": 0}
    greedy = prompted(prompts, generate_kwargs={"do_sample": False, "top_k": 3})
    body = request_body(unit(control="bad"), greedy, arm)
    assert (body["temperature"], body["top_k"], body["control"]) == (0.0, 3, "bad")
    assert "top_k" not in request_body(unit(), scenario, arm)
    told = request_body(unit(), scenario, described(arm, {"owned_by": "vllm"}))
    assert told["top_k"] == 0
    assert "top_k" not in request_body(unit(), scenario, described(arm, {"owned_by": "openai"}))
    assert unit(seed=1).request_seed != unit().request_seed == unit(arm="b").request_seed


def test_a_server_that_ignores_n_is_asked_until_there_are_enough(server, prompts):
    server.brings_n = False
    client = Client(server.url)
    arm = Arm(name="a", url=server.url, model="mle")
    samples = draw_unit(
        unit(max_tokens=9), scenario=prompted(prompts), arm=arm, ask=client.post, score=client.post, scorer="pep8"
    )
    assert [sample.index for sample in samples] == [0, 1, 2, 3]
    assert len({sample.text for sample in samples}) == 4
    assert len({body["seed"] for body in server.completions}) == 4


# -- Code that a model wrote ------------------------------------------------------------------------------------------


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    test = "def check(f):\n    assert f() == RIGHT\n"
    records = [
        {"task_id": f"T/{n}", "prompt": f"def f{n}():\n", "entry_point": f"f{n}", "test": test.replace("RIGHT", str(n))}
        for n in (0, 1)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_return(body, seed):
    """Returns 1 for two seeds of five, else a name that is not there."""
    return f"    return {1 if seed % 5 < 2 else 'missing'}\n\n\ndef next():\n    pass\n"


def execute_config(problems):
    return make_config(prompts=problems, use_prompt_for_scoring=False, execute=True)


def test_programs_are_run_against_their_tests_and_passes_are_counted_without_bias(server, problems, tmp_path):
    server.write = write_return
    report = run(server, tmp_path / "out", execute_config(problems), allow_code_execution=True)
    assert json.loads(json.dumps(recompute(str(tmp_path / "out")))) == report
    rows = [row for row in report["table"] if row["scenario"] == "functions"]
    assert {row["num_executed"] for row in rows} == {48}
    drawn = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    mine = [one for one in drawn if (one["arm"], one["scenario"]) == ("mle", "functions")]
    assert {one["outcome"] for one in mine} == {"passed", "NameError", "AssertionError"}
    for one in mine:
        expected = "NameError" if "missing" in one["text"] else "passed" if one["prompt_index"] else "AssertionError"
        assert one["outcome"] == expected
    assert {one["outcome"] for one in drawn if one["scenario"] == "unconditional"} == {None}
    # One of two problems is solved by c of n samples: Chen et al. 2021, equation 1.
    n, c = 24, sum(one["outcome"] == "passed" for one in mine)
    row = rows[0]
    assert 0 < c < n
    assert row["pass@1"] == pytest.approx(c / n / 2)
    assert row["pass@10"] == pytest.approx((1 - math.comb(n - c, 10) / math.comb(n, 10)) / 2)
    assert row["pass@100"] is None
    assert row["outcomes"]["passed"] == c
    assert "pass@10" in (tmp_path / "out" / "report.html").read_text()


def test_no_program_is_run_unless_that_is_allowed(server, problems, tmp_path):
    server.write = write_return
    with pytest.raises(ConfigError, match=r"functions runs code that a model writes.* give --allow-code-execution"):
        run(server, tmp_path / "out", execute_config(problems))
    assert server.completions == []
    # Nor where it is allowed and not asked for.
    report = run(server, tmp_path / "out", make_config(prompts=problems), allow_code_execution=True)
    assert {row["num_executed"] for row in report["table"]} == {0}
    assert {row["pass@1"] for row in report["table"]} == {None}


def test_what_is_no_problem_is_named_before_the_first_sample(server, prompts, tmp_path):
    with pytest.raises(DataError, match="record 1 is not a problem to execute; write"):
        run(server, tmp_path / "out", execute_config(prompts), allow_code_execution=True)
    assert server.completions == []
    with pytest.raises(ConfigError, match="execute: true but no prompts_path"):
        make_config(execute=True)


def test_prompts_are_read_as_realtoxicityprompts_and_humaneval_have_them(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [{"text": "a"}, {"prompt": {"text": "b", "toxicity": 0.3}, "challenging": True}, {"prompt": "c"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_prompts(str(path)) == ["a", "b", "c"]


def test_a_choice_without_a_text_is_named(prompts):
    def ask(path, body):
        return {"choices": [{"message": {"content": "a"}, "index": 0, "finish_reason": "stop"}]}

    with pytest.raises(RefusedError, match=r"choice without a text \(message, index, .*m served for chats only\?"):
        draw_unit(unit(count=1), scenario=prompted(prompts), arm=Arm("a", "u", "m"), ask=ask, score=ask, scorer="pep8")


def test_text_that_cannot_be_stored_is_mended_before_it_is_scored(prompts):
    seen = []

    def score(path, body):
        seen.extend(body["input"])
        return {"data": [{"index": 0, "score": 0.5, "error": None}]}

    def ask(path, body):
        return {"choices": [{"text": "a\ud800b\ud83d\ude00", "index": 0, "finish_reason": "length"}]}

    [sample] = draw_unit(
        unit(count=1), scenario=prompted(prompts), arm=Arm("a", "u", "m"), ask=ask, score=score, scorer="pep8"
    )
    assert [sample.text] == seen == ["a\ufffdb\U0001f600"]
    assert sample.num_tokens is None


def test_prompt_files_are_checked_line_by_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(ConfigError, match="can't be read"):
        read_prompts(str(path))
    path.write_text('{"text": "a"}\n\n{"texts": "b"}\n')
    with pytest.raises(DataError, match=r"prompts\.jsonl:3: no prompt .*write"):
        read_prompts(str(path))
    path.write_text('{"text": 3}\n')
    with pytest.raises(DataError, match="`text` is 3; write a string"):
        read_prompts(str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(str(path))
    path.write_text('{"text": "a", "more": 1}\n{"text": "b"}')
    assert read_prompts(str(path)) == ["a", "b"]


def test_a_key_is_in_no_representation_and_no_file(server, tmp_path):
    arms = make_arms(server.url, key="sesame")[:1]
    assert "sesame" not in repr(arms)
    run(server, tmp_path / "out", arms=arms)
    assert all(b"sesame" not in path.read_bytes() for path in (tmp_path / "out").iterdir())
