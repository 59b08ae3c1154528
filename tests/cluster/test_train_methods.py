"""The six methods of the paper, as shipped, through jobs.train_lm: on one worker, on two, on two nodes."""

import contextlib
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from places import ROOT
from tiny_models import tiny_tokenizer
from train_here import worker_here
from train_runs import losses, metrics, write_corpus

from jobs.train_lm import main
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.runs.directory import is_complete

pytestmark = pytest.mark.timeout(400)

PEP8 = ROOT / "configs" / "pep8"
METHODS = ("mle", "conditional", "filtering", "ul", "awr", "rwr")
LENGTH = 32
# fp32 sums in another order, over a dozen steps of Adam at 1e-3.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("six methods")
    write_corpus(folder / "scored")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return folder


def command(folder: Path, method: str, *overrides: str, name: str) -> list[str]:
    """Arguments of jobs.train_lm: the shipped files, scaled down to a model of some thousand weights."""
    small = [
        f"dataset.datasets=['{folder}/scored']",
        f"dataset.seq_length={LENGTH}",
        "dataset.held_out_fraction=0.1",
        f"tokenizer.path_or_name='{folder}/tokenizer'",
        "model.path_or_name=null",
        "model.model_type=gpt2",
        f"model.config_kwargs={{n_layer: 2, n_head: 2, n_embd: 32, n_positions: {LENGTH}, "
        "resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}",
        "generation.scenario_configs=[]",
        "training.num_tokens=2600",
        "training.effective_batch_size=8",
        "training.per_device_train_batch_size=2",
        "training.precision=fp32",
        "training.save_steps=null",
        "training.resources_per_worker={CPU: 1}",
    ]
    files = ["--task", str(PEP8 / "pretrain.yml"), "--method", str(PEP8 / f"{method}.yml")]
    return [*files, "--run-name", name, "--storage-path", str(folder / "runs"), "--override", *small, *overrides]


class Kept(logging.Handler):
    """Messages by the run that was training."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.run = ""
        self.messages: dict[str, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages[self.run].append(record.getMessage())


@pytest.fixture(scope="module")
def kept_warnings() -> Iterator[Kept]:
    kept = Kept()
    log = logging.getLogger("phf_ray")
    log.addHandler(kept)
    yield kept
    log.removeHandler(kept)


@pytest.fixture(scope="module")
def trained(folder, local_ray, kept_warnings):
    """Folder of a run; each is trained once. Without `num_workers`, in this process."""

    def run(method: str, *overrides: str, name: str) -> Path:
        path = folder / "runs" / name
        if not (path / "summary.json").exists():
            kept_warnings.run = name
            on_ray = any("num_workers" in override for override in overrides)
            with contextlib.nullcontext() if on_ray else worker_here():
                assert main(command(folder, method, *overrides, name=name)) == 0
        return path

    return run


def assert_equal_curves(ours: Path, theirs: Path, *, tolerance: float = TOLERANCE) -> None:
    mine, other = losses(ours), losses(theirs)
    assert len(mine) >= 10
    assert list(mine) == list(other)
    assert list(mine.values()) == pytest.approx(list(other.values()), rel=tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns(trained, method):
    plain = [
        row["objective/train/original_loss"] for row in metrics(trained(method, name=method)) if "train/loss" in row
    ]
    assert plain[-1] < plain[0] - 0.1, "the model learns the language"


@pytest.mark.parametrize("method", ["conditional", "awr"])
def test_a_method_learns_the_same_on_one_worker_and_on_two(trained, method):
    """With control tokens, and with a value head. Sums of every objective over ranks: test_objectives_distributed."""
    one = trained(method, name=method)
    two = trained(method, "training.num_workers=2", name=f"{method}-two-workers")
    assert_equal_curves(one, two)
    assert len(json.loads((two / "owner.json").read_text())["workers"]) == 2


def test_the_six_methods_are_six_different_trainings(trained):
    curves = {tuple(losses(trained(method, name=method)).values()) for method in METHODS}
    assert len(curves) == 6


TRAIN = {"loss", "learning_rate", "epoch", "global_step", "tokens_seen", "theoretical_loss"}
SPEED = {"tokens_per_s", "tokens_per_s_per_device", "data_wait_fraction", "peak_memory_gb"}
EVERY_OBJECTIVE = {"original_loss", "theoretical_loss", "tokens_used", "docs_used", "instantaneous_batch_size"}
EVERY_OBJECTIVE |= {"instantaneous_microbatch_size"}
WEIGHTS = {"lm_loss", "weighted_lm_loss", "weight_avg", "weights_min", "weights_max", "weight_dist"}
VALUES = {"value_loss", "value_min", "value_max", "value_avg", "value_std", "value_reward_corr", "value_dis"}
OWN = {
    "mle": set(),
    "conditional": set(),
    "filtering": set(),
    "ul": {"avg_token_score", "aligned_token_count", "likelihood_loss", "unlikelihood_loss"},
    "rwr": WEIGHTS,
    "awr": WEIGHTS | VALUES | {"advantage_avg"},
}
INSPECTED = {"segments", "score", "score_std", "num_segments", "raw_text"}
INSPECTED |= {"raw_token_scores_avg", "raw_token_scores_std", "length", "distinct-1-grams", "compilable"}


@pytest.mark.parametrize("method", METHODS)
def test_metrics_have_the_names_that_the_original_logs_them_under(trained, method):
    rows = metrics(trained(method, name=method))
    (row,) = [row for row in rows if row["train/global_step"] == 2 and "train/loss" in row]
    assert {f"train/{name}" for name in TRAIN | SPEED} <= row.keys()
    assert {f"objective/train/{name}" for name in EVERY_OBJECTIVE | OWN[method]} <= row.keys()
    for name in OWN[method] & {"weight_dist", "value_dis"}:
        assert len(row[f"objective/train/{name}"]["edges"]) == len(row[f"objective/train/{name}"]["counts"]) + 1
    (evaluated,) = [row for row in rows if "eval/bits_per_byte" in row]
    for name in ({"original_loss"} | OWN[method]) - {"weight_dist", "value_dis"}:
        assert evaluated[f"objective/eval/{name}"] is not None
    assert evaluated["objective/eval/tokens_seen_during_eval"] == evaluated["train/tokens_seen"]
    (inspected,) = [row for row in rows if "debugging/num_segments" in row]
    assert inspected["train/global_step"] == 1
    found = {name.removeprefix("debugging/") for name in inspected if name.startswith("debugging/")}
    assert found >= INSPECTED - {"compilable"}
    assert any("compil" in name for name in found)
    has_values = inspected["debugging/raw_text"]["rows"][0][2] is not None
    assert has_values == (method == "awr")


def sample_fractions(run: Path) -> list[float]:
    rows = [row for row in metrics(run) if "train/loss" in row]
    return [row["objective/train/effective_sample_fraction"] for row in rows]


def test_weights_that_hardly_differ_are_reported_and_standardised_rewards_make_them_differ(
    trained, folder, kept_warnings
):
    """Scores of 0 and 0.1 at the shipped beta of 10: weights between 0.99 and 1."""
    weak = trained("rwr", name="rwr")
    assert len(sample_fractions(weak)) >= 10
    assert min(sample_fractions(weak)) > 0.99
    assert sum("numerically MLE" in message for message in kept_warnings.messages["rwr"]) == 1
    sharp = trained("rwr", "objective.reward_norm=zscore", "objective.beta=1", name="rwr-zscore")
    assert max(sample_fractions(sharp)) < 0.9
    assert not any("numerically MLE" in message for message in kept_warnings.messages["rwr-zscore"])
    plan = json.loads((sharp / "plan.json").read_text())
    (blocks,) = [
        path.parent
        for path in (folder / "runs" / "blocks").rglob("_SUCCESS")
        if read_block_manifest(str(path.parent)).fingerprint == plan["blocks_hash"]
    ]
    scores = read_block_manifest(str(blocks)).token_scores
    assert (plan["reward_mean"], plan["reward_std"]) == (-scores.mean, scores.std)
    row = next(row for row in metrics(sharp) if "train/loss" in row)
    # Scores are 0 and 0.1 alone: the smallest and largest weights are exp((R - mean) / std) of the two.
    expected = [math.exp((scores.mean - score) / scores.std) for score in (0.1, 0.0)]
    found = [row[f"objective/train/{name}"] for name in ("weights_min", "weights_max")]
    assert found == pytest.approx(expected, rel=1e-4)


def test_what_training_makes_of_the_control_tokens_is_followed(trained):
    rows = metrics(trained("conditional", name="conditional"))
    (row,) = [row for row in rows if "debugging/control_tokens_similarity" in row]
    assert -1 <= row["debugging/control_tokens_similarity"] < 1
    assert row["debugging/<|aligned|>_norm"] > 0
    assert row["debugging/<|misaligned|>_norm"] > 0


def test_the_final_checkpoint_has_a_card_with_the_results(trained):
    run = trained("conditional", name="conditional")
    summary = json.loads((run / "summary.json").read_text())
    data = ModelCard.load(run / summary["checkpoint"] / "README.md").data
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    assert measured["eval/bits_per_byte_good"] == pytest.approx(summary["metrics"]["eval/bits_per_byte_good"])
    assert measured["train/loss"] == pytest.approx(summary["metrics"]["train/loss"])
    assert is_complete(run / summary["checkpoint"]), "the card was renewed and the checkpoint is none the worse"


def test_checkpointed_and_sharded_layers_learn_the_same(trained):
    settings = ("gradient_checkpointing=true", "parallelism=fsdp2", "num_workers=2")
    sharded = trained("mle", *[f"training.{setting}" for setting in settings], name="mle-sharded")
    assert_equal_curves(sharded, trained("mle", name="mle"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a processor")
@pytest.mark.skipif(" " in torch.__file__, reason="torch leaves its own path unquoted when it calls g++")
def test_compiled_layers_learn_the_same(trained):
    compiled = trained(
        "mle", "training.torch_compile=true", "training.gradient_checkpointing=true", name="mle-compiled"
    )
    assert_equal_curves(compiled, trained("mle", name="mle"))


def test_with_a_document_mask_another_curve_is_learned_from_the_same_blocks(trained):
    masked = trained("mle", "training.document_mask=true", name="mle-masked")
    curve, plain = losses(masked), losses(trained("mle", name="mle"))
    assert list(curve) == list(plain)
    assert curve != plain
    assert list(curve.values()) == pytest.approx(list(plain.values()), rel=0.1)


def test_data_sets_are_mixed_by_weight(trained, folder):
    rows = pq.read_table(folder / "scored" / "part-00000.parquet").to_pylist()
    other = folder / "other"
    other.mkdir(exist_ok=True)
    changed = [row | {"texts": [text.replace("=", "!=") for text in row["texts"]]} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed), other / "part-00000.parquet")
    both = f"dataset.datasets=['{folder}/scored', '{other}']"
    for weights, name in (("[0, 1]", "second-data-set"), ("[1, 0]", "first-data-set")):
        size = "training.per_device_train_batch_size=8"
        run = trained("mle", both, f"dataset.weights={weights}", size, name=name)
        # What the model was fed at the first step.
        (spans,) = [row["debugging/raw_text"]["rows"] for row in metrics(run) if "debugging/raw_text" in row]
        assert spans
        assert all(("!=" in text) == (name == "second-data-set") for text, *_ in spans if "=" in text)


def test_the_command_line_gives_the_run_of_the_python_call(trained, folder):
    """On the same cluster, as a user starts it."""
    import ray

    process = subprocess.run(
        [sys.executable, "-m", "jobs.train_lm", *command(folder, "mle", name="command line")],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    run = folder / "runs" / "command line"
    summary = json.loads((run / "summary.json").read_text())
    assert process.stdout.strip() == str(run / summary["checkpoint"])
    assert losses(run) == losses(trained("mle", name="mle"))


def test_two_workers_on_two_nodes_learn_what_one_learns(trained, folder):
    from ray.cluster_utils import Cluster

    alone = trained("mle", name="mle")
    name = "two nodes"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1, resources={"trains": 1}) for _ in range(2)]
        # A worker takes all that a node has of `trains`: two of them do not fit on one.
        overrides = ("training.num_workers=2", "training.resources_per_worker={CPU: 1, trains: 1}")
        process = subprocess.run(
            [sys.executable, "-m", "jobs.train_lm", *command(folder, "mle", *overrides, name=name)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster.address, "PHF_SHARED_ROOTS": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        node_ids = {node.node_id for node in nodes}
    finally:
        cluster.shutdown()
    run = folder / "runs" / name
    workers = json.loads((run / "owner.json").read_text())["workers"]
    assert {worker["node"] for worker in workers} == node_ids
    assert_equal_curves(run, alone)
