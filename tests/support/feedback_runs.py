"""Comparisons in a file, turned into blocks and trained on: one worker in this process, without Ray."""

import json

import yaml
from tiny_models import tiny_tokenizer

from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.blocks.build import build_here, ensure_blocks
from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.tokenizer import load_tokenizer
from phf_ray.config import parse_config
from phf_ray.corpus.overlap import overlaps_here
from phf_ray.runs.directory import RunDirectory
from phf_ray.training.driver import Helpers, Tracking, run_training
from phf_ray.training.eval_sets import read_eval_sets, store_eval_sets
from phf_ray.training.in_process import fit_here
from phf_ray.training.plan import plan_training
from phf_ray.training.reference import compute_here, ensure_reference
from phf_ray.training.start import initial_model

WORDS = ["apple", "brown", "clock", "dog", "eagle", "fox", "grape", "house", "import", "jumps", "lazy", "over"]


def write_feedback(folder):
    """A tokenizer, and comparisons in which the answer that repeats the word is the better one."""
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    rows = []
    for first in WORDS:
        for second in WORDS:
            prompt = f"{first} and {second}: "
            rows.append({"prompt": prompt, "chosen": f"{second} again", "rejected": f"never {first}"})
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_feedback(["--input", str(source), "--output", str(folder / "pairs")])
    prepare_feedback(["--input", str(source), "--output", str(folder / "examples"), "--to", "sft"])
    prepare_feedback(["--input", str(source), "--output", str(folder / "labelled"), "--to", "kto"])
    return folder


def make_config(folder, *, objective, model=None, **training):
    """`model`: changes of the model."""
    return parse_config(
        {
            "dataset": {"seq_length": 96, "max_length": 40, "held_out_fraction": 0.2, "prompt_template": "plain"},
            "tokenizer": {"path_or_name": str(folder / "tokenizer")},
            "model": {
                "path_or_name": None,
                "model_type": "gpt2",
                "config_kwargs": {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 96, "resid_pdrop": 0.1},
            }
            | (model or {}),
            "objective": objective,
            "training": {
                "num_epochs": 6,
                "effective_batch_size": 8,
                "per_device_train_batch_size": 4,
                "learning_rate": 0.01,
                "precision": "fp32",
                "document_mask": True,
            }
            | training,
        }
    )


def write_task(folder, method, config, *, corpora):
    """Write a configuration as the task file of a job. Return its path."""
    values = config.model_dump(mode="json")
    values["dataset"]["datasets"] = [str(folder / corpus) for corpus in corpora]
    values["training"]["resources_per_worker"] = {"CPU": 1}
    task = folder / "alpaca" / f"{method}.yml"
    task.parent.mkdir(exist_ok=True)
    task.write_text(yaml.safe_dump(values), encoding="utf-8")
    return task


def train(folder, name, config, *, corpus, checkpoint_path=None):
    blocks = ensure_blocks(
        config, corpora=[str(folder / corpus)], output_root=str(folder / "blocks"), builder=build_here
    )
    reference = None
    if config.objective.reads_reference:
        tokenizer = load_tokenizer(config.tokenizer)
        reference = ensure_reference(
            config,
            blocks=blocks.root,
            checkpoint_path=checkpoint_path,
            build=lambda: initial_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer),
            run=compute_here,
        )
    plan = plan_training(
        config,
        manifest=read_block_manifest(blocks.root),
        objective_threshold=None,
        checkpoint_path=checkpoint_path,
        reference=reference,
        eval_sets=store_eval_sets(
            config, read_eval_sets(config), parts=[], folder=str(folder / "sets"), counter=overlaps_here
        ),
    )
    run = RunDirectory(folder / "runs" / name)
    return run, lambda: run_training(
        config, plan=plan, run=run, blocks_path=blocks.root, task="alpaca", tracking=Tracking(),
        helpers=Helpers(fit=fit_here),
    )  # fmt: skip
