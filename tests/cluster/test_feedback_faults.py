"""Kills while the reference is computed, and while DPO, a reward model and adapters train on other numbers of workers.

Campaigns of kills at random moments are in test_feedback_campaign.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from feedback_runs import make_config, train, write_feedback, write_task
from killed_runs import (
    Job,
    assert_equal_runs,
    assert_near_runs,
    kill_worker,
    last_checkpoint,
)
from peft import PeftModel
from tiny_adapters import write_base
from train_here import worker_here
from train_runs import arguments, run_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.prepare_feedback import main as prepare_feedback
from jobs.train_lm import main
from phf_ray.blocks.manifest import read_block_manifest

pytestmark = pytest.mark.timeout(600)

TWO, ONE = "training.num_workers=2", "training.num_workers=1"
LONG = {"num_epochs": 20, "learning_rate": 1e-3, "save_steps": 10, "save_total_limit": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_feedback(tmp_path_factory.mktemp("feedback faults"))


# --- The reference ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Let whoever opens the file wait until it is killed."""
    aside = path.with_name(f".{path.name}-aside")
    path.rename(aside)
    os.mkfifo(path)
    try:
        yield
    finally:
        path.unlink()
        aside.rename(path)


def is_waited_for(path: Path) -> bool:
    """Whether somebody waits to read the held file, which then fails."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def tasks() -> list[int]:
    """Processes of this test's Ray that compute log-probabilities."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::_compute_shards" in (folder / "cmdline").read_bytes() and os.getpid() in parents_of(folder.name):
                found.append(int(folder.name))
    return found


def parents_of(pid: str) -> Iterator[int]:
    while pid != "0":
        # "pid (name) state parent ...", where the name may hold spaces.
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        yield int(pid)


@pytest.fixture(scope="module")
def dpo(folder, local_ray) -> Path:
    """Task file of a DPO run on three corpora, whose blocks are as many files, and that run, undisturbed."""
    corpora = ["pairs"]
    for number in range(2):
        source = folder / f"more-{number}.jsonl"
        lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
        source.write_text("".join(lines[number * 50 : number * 50 + 50]).replace("again", "once more"))
        prepare_feedback(["--input", str(source), "--output", str(folder / f"more-{number}")])
        corpora.append(f"more-{number}")
    task = write_task(
        folder, "dpo", make_config(folder, objective={"name": "DPO", "beta": 0.1}, **LONG), corpora=corpora
    )
    assert main(arguments(task, TWO, name="whole")) == 0
    return task


def test_a_reference_killed_halfway_goes_on_with_what_is_missing_and_dpo_ends_byte_for_byte(dpo):
    whole = run_folder(dpo, "whole")
    (blocks,) = (whole.parent / "blocks").glob("blocks-*")
    (computed,) = blocks.glob("reference-*")
    manifest = read_block_manifest(str(blocks))
    files = [shard.file for shard in (*manifest.shards, *manifest.held_out_shards)]
    assert len(files) == 6
    assert {path.name for path in computed.iterdir()} == set(files)

    # Four tasks for six files: the first one has written a file before it comes to the one that is held.
    storage = dpo.parents[1] / "killed"
    copy = storage / "blocks" / blocks.name
    shutil.copytree(blocks, copy, ignore=shutil.ignore_patterns("reference-*"))
    reference = copy / computed.name
    command = [*arguments(dpo, TWO, name="killed"), "--storage-path", str(storage)]

    def written() -> dict[str, int]:
        found = reference.glob("[!.]*") if reference.exists() else ()
        return {path.name: path.stat().st_mtime_ns for path in found}

    with held(copy / files[4]):
        job = Job(command)
        job.wait_until(lambda: len(written()) == 5)
        before = written()
        job.wait_until(lambda: len(tasks()) == 1)
        os.kill(*tasks(), signal.SIGKILL)
        # Ray repeats the task in another process.
        job.wait_until(lambda: is_waited_for(copy / files[4]))
        assert written() == before, "what the task had written was computed again"
        job.kill()
    job = Job(command)
    run = storage / "killed"
    job.wait_for_checkpoints(run)
    kill_worker(run, rank=1)
    output = job.ends_with(0)
    assert "log-probabilities of the reference: 1 of 1 shards" in output
    assert "the workers died and were restarted; they continue from step-" in output
    assert before.items() <= written().items()
    for file in files:
        assert (reference / file).read_bytes() == (computed / file).read_bytes(), file
    assert_equal_runs(run, whole)


# --- Other numbers of workers -------------------------------------------------------------------------------------


def killed_with_two_then_finished_with_one(task: Path) -> Path:
    """From one to two goes tests/local/training/test_train.py, and from two to one to two test_rollout_faults."""
    run = run_folder(task, f"{task.stem}-killed")
    job = Job(arguments(task, TWO, "training.save_total_limit=null", name=f"{task.stem}-killed"))
    job.wait_for_checkpoints(run)
    job.kill()
    with worker_here():
        assert main(arguments(task, ONE, "training.save_total_limit=null", name=f"{task.stem}-killed")) == 0
    return run


def test_a_reward_model_whose_driver_is_killed_goes_on_with_one_worker(folder, local_ray):
    config = make_config(folder, objective={"name": "BradleyTerry"}, **LONG)
    whole, train_whole = train(folder, "reward-whole", config, corpus="pairs")
    train_whole()
    run = killed_with_two_then_finished_with_one(write_task(folder, "reward", config, corpora=["pairs"]))
    assert_near_runs(run, whole.path)


def test_adapters_whose_driver_is_killed_go_on_with_one_worker_and_load_in_peft(folder, local_ray):
    """With dropout, in the model and in the adapter: every number of workers draws the same masks."""
    write_base(folder / "base")
    lora = {"r": 4, "alpha": 8, "dropout": 0.1}
    changes = {"path_or_name": str(folder / "base"), "from_scratch": False, "model_type": None, "config_kwargs": {}}
    config = make_config(folder, objective={"name": "MLE"}, model=changes | {"lora": lora}, **LONG)
    whole, train_whole = train(folder, "lora-whole", config, corpus="examples")
    train_whole()
    run = killed_with_two_then_finished_with_one(write_task(folder, "lora", config, corpora=["examples"]))
    assert_near_runs(run, whole.path)

    checkpoint = last_checkpoint(run)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    ids = AutoTokenizer.from_pretrained(checkpoint)("fox and house: ", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        # Adapters change the model that they are loaded onto.
        adapted = PeftModel.from_pretrained(base, checkpoint)
        theirs = adapted(ids).logits
        with adapted.disable_adapter():
            assert torch.equal(adapted(ids).logits, before)
    assert not torch.allclose(theirs, before, atol=0.1)
