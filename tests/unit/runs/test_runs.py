"""The run directory: complete or not there, one writer, the same run or refused; and those who follow it."""

import importlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phf_ray.config import parse_config
from phf_ray.errors import ConfigError, DataError
from phf_ray.runs.changes import changed_settings
from phf_ray.runs.directory import COMPLETE, RunDirectory, is_complete
from phf_ray.runs.following import Follower, ProgressLines
from phf_ray.runs.rows import EVALUATION, STEP
from phf_ray.runs.samples import all_sample_tables
from phf_ray.runs.starts import may_be_under_way, started
from phf_ray.runs.tracking import WandbTracker, start_tracker, wants_wandb

CONFIG = {
    "dataset": {"datasets": ("scored",), "seq_length": 128},
    "model": {"config_kwargs": {"n_layer": 2}},
    "training": {
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "num_workers": 1,
        "resources_per_worker": {},
        "seed": 1,
    },
    "generation": {"batch_size": 64},
    "compat": None,
}
PLAN = {"num_steps": 10, "blocks_hash": "abc", "thresholds": {"conditional": 0.0}}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "a run")
    directory.prepare(config=CONFIG, plan=PLAN)
    return directory


def changed(section: str, **values) -> dict:
    return {**CONFIG, section: {**CONFIG[section], **values}}


def test_answers_that_are_stored_are_kept_from_other_settings(run):
    """Without a checkpoint, too: a round would go on with what another temperature drew."""
    samples = run.path / "rollouts" / "round-00000" / "samples.parquet"
    samples.parent.mkdir(parents=True)
    (run.path / "rollouts" / "rewards.json").touch()
    run.prepare(config=changed("training", seed=2), plan=PLAN)
    assert not (run.path / "rollouts").exists(), "an empty run leaves nothing to the next one"
    samples.parent.mkdir(parents=True)
    samples.touch()
    with pytest.raises(
        ConfigError, match=r"training\.seed: 2 in the run, 1 now\nthe run has no checkpoint yet: stop it"
    ):
        run.prepare(config=CONFIG, plan=PLAN)


def test_how_rewards_are_asked_for_may_change_and_what_they_are_may_not():
    def rewards(**url):
        judge = {"scorer": {"url": "http://j", "name": "pep8", "max_in_flight": url.get("timeout_s", 4)}}
        judged = {"pool": {"annotators": [{"name": "a", "judge": judge}]}, "cache": url.get("key_env")}
        served = {"url": "http://h", "scorer": None, **url}
        scorer = {"class_name": "ToxicityScorer", "device": url.get("key_env")}
        specs = [{"url": served}, {"annotators": judged}, {"scorer": scorer}]
        return {"rollouts": {"reward": specs, "gold": {"url": served}}}

    def changes(**url):
        return changed_settings(rewards(), rewards(**url), sections=("rollouts",))

    assert changes(max_in_flight=9, batch_size=2, patience_s=1, timeout_s=2, key_env="KEY") == []
    assert changes(scorer="pep8") == [
        "rollouts.gold.url.scorer: None in the run, 'pep8' now",
        "rollouts.reward.0.url.scorer: None in the run, 'pep8' now",
    ]
    own = [{"rollouts": {"reward": [{"class_name": "a:B", "settings": {"batch_size": n}}]}} for n in (1, 2)]
    assert changed_settings(*own, sections=("rollouts",)) == [
        "rollouts.reward.0.settings.batch_size: 1 in the run, 2 now"
    ]


def write_two_files(directory: Path) -> None:
    (directory / "training_state").mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "training_state" / "state.json").write_text("{}")


# --- Same run or refused ----------------------------------------------------------------------------------------------


def test_the_same_settings_are_accepted_again(run):
    run.prepare(config=json.loads(json.dumps(CONFIG)), plan=PLAN)


@pytest.mark.parametrize(
    ("config", "plan", "line"),
    [
        (changed("training", learning_rate=2e-3), PLAN, r"training\.learning_rate: 0\.001 in the run, 0\.002 now"),
        (changed("model", config_kwargs={"n_layer": 3}), PLAN, r"model\.config_kwargs\.n_layer: 2 in the run, 3 now"),
        (changed("dataset", datasets=("other",)), PLAN, r"dataset\.datasets: \['scored'\] in the run, \['other'\] now"),
        ({**CONFIG, "compat": "korbak2023"}, PLAN, r"compat: None in the run, 'korbak2023' now"),
        (
            changed("training", per_device_train_batch_size=3),
            PLAN,
            r"training\.per_device_train_batch_size: 16 in the run, 3 now",
        ),
        (
            CONFIG,
            {**PLAN, "blocks_hash": "def"},
            r"the training data .*\(plan\.blocks_hash\): 'abc' in the run, 'def' now",
        ),
    ],
)
def test_other_settings_are_refused_by_the_names_of_the_keys(run, config, plan, line):
    run.commit_checkpoint(1, write_two_files, keep=None)
    with pytest.raises(ConfigError, match=line) as caught:
        run.prepare(config=config, plan=plan)
    assert "choose another --run-name" in str(caught.value)
    assert json.loads((run.path / "config.json").read_text())["training"]["learning_rate"] == 1e-3


def test_a_run_that_failed_before_its_first_checkpoint_gives_its_place_to_other_settings(run):
    run.append_metrics({STEP: 3, "train/loss": 2.0})
    run.hand_out_weights(0, write_two_files)
    other = changed("training", seed=7)
    with started(run.path), pytest.raises(ConfigError, match="no checkpoint yet: stop it and remove"):
        run.prepare(config=other, plan=PLAN)
    run.prepare(config=other, plan={**PLAN, "blocks_hash": "def"})
    assert (run.read_metrics(), run.steps_to_evaluate()) == ([], [])
    run.commit_checkpoint(1, write_two_files, keep=None)
    run.append_metrics({STEP: 1, "train/loss": 2.0})
    run.prepare(config=other, plan={**PLAN, "blocks_hash": "def"})
    assert len(run.read_metrics()) == 1


def test_the_note_of_a_killed_command_holds_nobody_up(run):
    code = (
        "import os, pathlib, sys; from phf_ray.runs.starts import started\n"
        "with started(pathlib.Path(sys.argv[1])): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=False)
    assert (run.path / "started.json").exists()
    assert not may_be_under_way(run.path)
    with started(run.path):
        assert may_be_under_way(run.path)
        with started(run.path):
            pass
        assert not (run.path / "started.json").exists()
    (run.path / "started.json").write_text(json.dumps({"start": "x", "host": "elsewhere.example", "pid": 1}))
    assert may_be_under_way(run.path)


def test_keys_that_a_newer_version_adds_change_nothing(run):
    older = parse_config({}).model_dump(mode="json")
    del older["training"]["save_steps"], older["training"]["seed"], older["objective"]["score_control"]
    older_run = RunDirectory(run.path.parent / "older")
    older_run.prepare(config=older, plan=PLAN)
    older_run.commit_checkpoint(1, write_two_files, keep=None)
    now = parse_config({}).model_dump(mode="json")
    older_run.prepare(config=now, plan={**PLAN, "a_new_figure": 3})
    with pytest.raises(ConfigError, match=r"training\.seed: \d+ in the run, 12345 now"):
        older_run.check(config=parse_config({"training": {"seed": 12345}}).model_dump(mode="json"))


def test_what_nothing_learned_depends_on_may_change(run):
    config = changed("training", num_workers=4, resources_per_worker={"CPU": 2.0}, parallelism="fsdp2")
    run.prepare(config={**config, "generation": {"batch_size": 1}}, plan=PLAN)
    assert json.loads((run.path / "config.json").read_text())["training"]["num_workers"] == 4


def test_a_configuration_that_is_no_json_is_named(run):
    (run.path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not valid JSON.*choose another --run-name"):
        run.prepare(config=CONFIG, plan=PLAN)


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_appears_when_all_of_it_is_written(run):
    def write(directory: Path) -> None:
        write_two_files(directory)
        assert run.complete_checkpoints() == []
        assert not (run.checkpoints / "step-00000005").exists()

    path = run.commit_checkpoint(5, write, keep=None)
    assert path == run.checkpoints / "step-00000005" == run.latest_checkpoint()
    assert json.loads((path / COMPLETE).read_text()) == {"model.safetensors": 7, "training_state/state.json": 2}


def test_a_writer_that_fails_leaves_no_checkpoint(run):
    def write(directory: Path) -> None:
        write_two_files(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.commit_checkpoint(5, write, keep=None)
    assert run.latest_checkpoint() is None
    assert list(run.checkpoints.iterdir()) == [], "a full disk has room again"


@pytest.mark.parametrize("damage", ["truncate", "remove", "no marker", "torn marker"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(run, damage):
    older = run.commit_checkpoint(5, write_two_files, keep=None)
    torn = run.commit_checkpoint(10, write_two_files, keep=None)
    if damage == "truncate":
        (torn / "model.safetensors").write_bytes(b"weigh")
    elif damage == "remove":
        (torn / "training_state" / "state.json").unlink()
    elif damage == "no marker":
        (torn / COMPLETE).unlink()
    else:
        (torn / COMPLETE).write_text('{"model.safe')
    assert not is_complete(torn)
    assert run.latest_checkpoint() == older
    assert run.commit_checkpoint(10, write_two_files, keep=None) == run.latest_checkpoint() == torn


def test_the_newest_checkpoints_are_kept(run):
    for step in (5, 10, 15, 20):
        run.commit_checkpoint(step, write_two_files, keep=2)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-00000015", "step-00000020"]


def test_steps_are_ordered_as_numbers(run):
    for step in (999, 1000, 100_000_000):
        run.commit_checkpoint(step, write_two_files, keep=None)
    assert run.latest_checkpoint().name == "step-100000000"


# --- One writer -------------------------------------------------------------------------------------------------------


def test_the_last_to_claim_is_the_one_that_writes(run):
    first = run.claim()
    assert run.is_claimed_by(first)
    second = run.claim()
    assert run.is_claimed_by(second)
    assert not run.is_claimed_by(first)
    assert json.loads((run.path / "owner.json").read_text())["pid"] == os.getpid()


def test_an_orphan_of_an_earlier_start_completes_no_checkpoint_and_removes_none(run):
    orphan, later = RunDirectory(run.path), RunDirectory(run.path)
    orphan.claim()
    chosen = orphan.commit_checkpoint(5, write_two_files, keep=1)

    def write_and_be_taken_over(directory: Path) -> None:
        write_two_files(directory)
        later.claim()
        assert not directory.exists()
        (directory / "training_state").mkdir(parents=True)  # as a writer does who goes on with its next folder
        assert later.latest_checkpoint() == chosen

    assert orphan.commit_checkpoint(10, write_and_be_taken_over, keep=1) is None
    assert orphan.commit_checkpoint(15, write_two_files, keep=1) is None
    orphan.hand_out_weights(15, write_two_files)
    assert list(run.checkpoints.iterdir()) == [chosen]
    assert is_complete(chosen)
    assert run.steps_to_evaluate() == []
    assert later.commit_checkpoint(10, write_two_files, keep=1) == later.latest_checkpoint()
    assert later.complete_checkpoints() == [run.checkpoints / "step-00000010"]


def test_a_checkpoint_that_an_orphan_removed_first_is_no_error(run, monkeypatch):
    old = run.commit_checkpoint(5, write_two_files, keep=None)
    found = run.complete_checkpoints
    monkeypatch.setattr(run, "complete_checkpoints", lambda: [old.with_name("step-00000001"), *found()])
    run.commit_checkpoint(10, write_two_files, keep=1)
    assert found() == [run.checkpoints / "step-00000010"]


def test_a_stop_is_asked_for_and_taken_back(run):
    assert not run.is_stop_requested()
    run.request_stop()
    assert run.is_stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.is_stop_requested()


# --- Metrics ----------------------------------------------------------------------------------------------------------


def test_rows_of_steps_that_are_trained_again_are_dropped_with_a_line_cut_short(run):
    for step in (1, 2, 3, 4):
        run.append_metrics({STEP: step, "train/loss": 1.0 / step})
    with run.metrics_path.open("a") as file:
        file.write('{"train/global_step": 5, "tra')
    run.drop_metrics_after(2)
    run.append_metrics({STEP: 3, "train/loss": 0.25})
    assert [(row[STEP], row["train/loss"]) for row in run.read_metrics()] == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_an_orphan_of_an_earlier_start_gets_no_row_among_those_of_the_one_that_took_over(run):
    orphan, later = RunDirectory(run.path), RunDirectory(run.path)
    orphan.drop_metrics_after(0)
    orphan.append_metrics({STEP: 1, "train/loss": 1.0})
    with orphan.metrics_path.open("a") as opened_before:
        later.drop_metrics_after(1)
        opened_before.write(json.dumps({STEP: 2, "train/loss": 9.0}) + "\n")
    orphan.append_metrics({STEP: 3, "train/loss": 9.0})
    for step in (2, 3):
        later.append_metrics({STEP: step, "train/loss": 1.0})
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert rows == [{STEP: step, "train/loss": 1.0} for step in (1, 2, 3)]


def test_a_figure_that_is_no_number_is_null_not_invalid_json(run):
    run.append_metrics({STEP: 1, "train/loss": 1.0, "objective/train/value_reward_corr": math.nan})
    text = run.metrics_path.read_text()
    assert "NaN" not in text
    assert run.read_metrics()[0]["objective/train/value_reward_corr"] is None


def test_of_a_row_that_two_starts_wrote_the_last_counts(run):
    for loss in (3.0, 1.0):
        run.append_metrics({STEP: 1, "train/loss": loss})
    run.append_metrics({STEP: 1, "eval/bits_per_byte": 2.0})
    assert run.read_metrics() == [{STEP: 1, "train/loss": 1.0}, {STEP: 1, "eval/bits_per_byte": 2.0}]


def test_a_follower_hands_on_rows_that_take_the_place_of_those_after_the_checkpoint(run):
    run.commit_checkpoint(2, write_two_files, keep=None)
    for step in (1, 2, 3, 4):
        run.append_metrics({STEP: step, "train/loss": 9.0})
    run.evaluation_folder(4).mkdir(parents=True)
    run.write_evaluation(4, {STEP: 4, EVALUATION: 1.0})
    seen = []
    with Follower(run, [seen.append], poll_s=0.01) as follower:
        follower._hand_on()
        assert not seen, "these steps are trained again"
        run.drop_metrics_after(2)
        for step in (3, 4, 5):
            run.append_metrics({STEP: step, "train/loss": 1.0})
    assert [(row[STEP], row["train/loss"]) for row in seen] == [(3, 1.0), (4, 1.0), (5, 1.0)]


def test_one_who_fails_is_left_out_and_the_others_get_every_row(run, caplog):
    class Broken:
        def __call__(self, row: dict) -> None:
            raise TypeError(f"no loss of {row[STEP]}")

    seen = []
    with Follower(run, [Broken(), seen.append], poll_s=0.01):
        for step in (1, 2):
            run.append_metrics({STEP: step, "train/loss": 1.0})
    assert [row[STEP] for row in seen] == [1, 2]
    (record,) = caplog.records
    assert record.getMessage() == (
        "Broken gets no more rows, because it raised TypeError: no loss of 1; metrics.jsonl has all rows"
    )


def test_one_who_hangs_does_not_hold_the_run(run, monkeypatch, caplog):
    monkeypatch.setattr("phf_ray.runs.following._LAST_ROWS_S", 0.1)
    released = threading.Event()
    with Follower(run, [lambda _row: released.wait()], poll_s=0.01):
        run.append_metrics({STEP: 1, "train/loss": 1.0})
    released.set()
    assert "could not be passed on within 0.1 s" in caplog.text


def test_a_follower_hands_on_each_row_once_also_after_a_restart_of_the_workers(run):
    run.append_metrics({STEP: 1, "train/loss": 1.0})
    run.commit_checkpoint(1, write_two_files, keep=None)
    seen = []
    with Follower(run, [seen.append], poll_s=0.01):
        for step in (2, 3):
            run.append_metrics({STEP: step, "train/loss": 1.0})
        run.append_metrics({STEP: 3, "eval/bits_per_byte": 2.0})
        while len(seen) < 3:
            pass
        run.drop_metrics_after(2)
        for step in (3, 4):
            run.append_metrics({STEP: step, "train/loss": 1.0})
    assert [(row[STEP], "train/loss" in row) for row in seen] == [(2, True), (3, True), (3, False), (4, True)]


def test_a_follower_warns_of_workers_that_were_started_again(run, caplog):
    run.claim()
    with Follower(run, [], poll_s=0.01) as follower:
        run.claim()
        follower._hand_on()
        assert not caplog.records, "a start is no restart"
        run.commit_checkpoint(20, write_two_files, keep=None)
        run.claim()
    assert [record.getMessage() for record in caplog.records] == [
        "the workers died and were restarted; they continue from step-00000020"
    ]


def test_progress_lines_show_step_loss_speed_and_time_left(run, caplog):
    lines = ProgressLines(10, every_s=0)
    with caplog.at_level(logging.INFO):
        for step in (1, 2):
            lines({STEP: step, "train/loss": 2.5, "train/tokens_per_s": 1234.5})
        lines({STEP: 2, "eval/bits_per_byte": 1.75})
        lines({STEP: 3, "train/loss": None, "train/tokens_per_s": 1.0})
    first, second, measured, broken = (record.getMessage() for record in caplog.records)
    assert first == "step 1/10: loss 2.5000, 1234 tokens/s, time left unknown"
    assert second.startswith("step 2/10: loss 2.5000, 1234 tokens/s, ")
    assert second.endswith(" s left")
    assert measured == "step 2/10: held-out bits per byte 1.7500"
    assert "loss not a number" in broken


def test_the_last_step_is_always_shown(caplog):
    lines = ProgressLines(3, every_s=1000)
    with caplog.at_level(logging.INFO):
        for step in (1, 2, 3):
            lines({STEP: step, "train/loss": 2.5, "train/tokens_per_s": 1.0})
    assert [record.getMessage()[:8] for record in caplog.records] == ["step 1/3", "step 3/3"]


# --- Tracker ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "x"}, False),
        ({"WANDB_MODE": "offline"}, True),
        ({"WANDB_API_KEY": "x"}, True),
        ({"WANDB_MODE": "", "WANDB_API_KEY": "x"}, True),
        ({"WANDB_MODE": "", "WANDB_API_KEY": ""}, False),
    ],
)
def test_wandb_is_used_when_asked_for(monkeypatch, environment, wanted):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wants_wandb() == wanted


@pytest.mark.timeout(300)
def test_settings_that_wandb_would_refuse_are_named_and_empty_ones_are_left_out(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match=r"WANDB_MODE='sometimes' is unknown; use one of online, offline"):
        wants_wandb()
    for name in ("WANDB_SILENT", "WANDB_CONSOLE", "WANDB_START_METHOD", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = start_tracker(run, group=None, tags=(), config={})
    assert tracker is not None
    tracker.close(exit_code=0)
    # wandb reads its variables once per session.
    importlib.import_module("wandb").teardown()
    monkeypatch.setenv("WANDB_CONSOLE", "teletype")
    with pytest.raises(ConfigError, match=r"wandb refuses its settings: console: .*unset these WANDB_ variables"):
        start_tracker(run, group=None, tags=(), config={})


def test_a_resumed_run_continues_its_wandb_run(run, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for step in (1, 2):
        tracker = start_tracker(run, group="pep8", tags=["test"], config=CONFIG)
        tracker(
            {
                STEP: step,
                "train/tokens_seen": 100 * step,
                "train/loss": 1.5,
                "train/grad_norm": None,
                "objective/train/weight_dist": {"edges": [0.0, 1.0, 2.0], "counts": [3.0, 4.0]},
                "debugging/segments": {"columns": ["text", "score"], "rows": [["x", 0.5], ["y", None]]},
            }
        )
        tracker.close(exit_code=0)
        ids.append((run.path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    offline = sorted((run.path / "wandb").glob("offline-run-*"))
    assert len(offline) == 2
    # Two folders of one second differ in a number at the end.
    assert all(ids[0] in folder.name for folder in offline)
    shutil.rmtree(run.path / "wandb")


def test_the_objective_on_held_out_text_is_drawn_over_its_own_tokens(run, monkeypatch):
    defined = {}

    class FakeRun:
        def define_metric(self, name: str, *, step_metric: str | None = None) -> None:
            assert name not in defined
            defined[name] = step_metric

        def log(self, row: dict) -> None:
            pass

    monkeypatch.setattr("wandb.init", lambda **_: FakeRun())
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = start_tracker(run, group=None, tags=[], config=CONFIG)
    for step in (1, 2):
        tokens = {"objective/eval/tokens_seen_during_eval": step}
        tracker({STEP: step, "objective/eval/loss": 1.0, "objective/train/loss": 2.0, **tokens})
    assert "objective/eval/tokens_seen_during_eval" not in defined
    assert defined["objective/eval/loss"] == "objective/eval/tokens_seen_during_eval"
    assert defined["*"] == "train/tokens_seen"
    assert "objective/train/loss" not in defined


def write_samples(run: RunDirectory, *, steps: int, texts: int = 1, scenarios: tuple[str, ...] = ("s",)) -> None:
    """Evaluations of steps 0, 20, ... with so many texts of each scenario."""
    for step in range(0, 20 * steps, 20):
        folder = run.evaluation_folder(step)
        folder.mkdir(parents=True)
        samples = [
            {"scenario": scenario, "prompt": "p", "text": f"text {step + number}", "score": 0.5, "error": None}
            for scenario in scenarios
            for number in range(texts)
        ]
        pq.write_table(pa.Table.from_pylist(samples), folder / "samples.parquet")
        run.write_evaluation(step, {STEP: step, "train/tokens_seen": 10 * step, EVALUATION: 1.0})


def test_a_table_that_would_be_cut_has_the_first_samples_of_each_step(run, caplog):
    write_samples(run, steps=3, texts=4, scenarios=("a", "b"))
    tables = all_sample_tables(run, max_rows=11)
    texts = [[0, "text 0"], [0, "text 1"], [0, "text 2"], [20, "text 20"], [20, "text 21"], [20, "text 22"]]
    texts += [[40, "text 40"], [40, "text 41"], [40, "text 42"]]
    assert {name: [[row[0], row[2]] for row in table["rows"]] for name, table in tables.items()} == {
        "generation/a/all_samples": texts,
        "generation/b/all_samples": texts,
    }
    (record,) = caplog.records
    assert "has the first 3 samples of each of 3 steps" in record.getMessage()
    caplog.clear()
    assert all(len(table["rows"]) == 12 for table in all_sample_tables(run, max_rows=12).values())
    assert not caplog.records


def test_samples_that_can_not_be_shown_keep_no_run_open(run, caplog):
    codes = []

    class Open:
        def finish(self, *, exit_code: int) -> None:
            codes.append(exit_code)

    write_samples(run, steps=1)
    (run.evaluation_folder(0) / "samples.parquet").write_text("torn")
    tracker = WandbTracker.__new__(WandbTracker)
    tracker._run, tracker._wandb_run = run, Open()
    tracker.close(exit_code=1)
    assert codes == [1]
    assert "wandb did not get the table of all samples: " in caplog.text


def test_at_the_end_all_samples_are_shown_in_one_table(run, monkeypatch):
    write_samples(run, steps=2)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = start_tracker(run, group=None, tags=[], config=CONFIG)
    tracker.close(exit_code=0)
    [table] = (run.path / "wandb").glob("offline-run-*/files/media/table/generation/s/all_samples_*.table.json")
    assert json.loads(table.read_text()) == {
        "columns": ["step", "prompt", "text", "score", "error"],
        "data": [[0, "p", "text 0", 0.5, None], [20, "p", "text 20", 0.5, None]],
    }


def test_a_tracker_that_can_t_end_its_run_is_reported(run, monkeypatch, caplog):
    class Unreachable:
        def finish(self, *, exit_code: int) -> None:
            raise OSError("no route to host")

    tracker = WandbTracker.__new__(WandbTracker)
    monkeypatch.setattr(tracker, "_run", run, raising=False)
    monkeypatch.setattr(tracker, "_wandb_run", Unreachable(), raising=False)
    tracker.close(exit_code=0)
    assert "wandb could not finish its run: no route to host" in caplog.text
