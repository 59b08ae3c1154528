"""A small scored corpus, the configuration of a tiny model, and readers of a run's files, for the tests of training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from tiny_models import BAD, GOOD, tiny_tokenizer

SEQ_LENGTH = 32


def write_corpus(folder: Path, *, num_documents: int = 80) -> Path:
    """Write documents of a few lines. A line scores 0.1 if it has a semicolon."""
    draw = np.random.default_rng(0)
    names = ["first", "second", "value", "result", "path"]
    rows = []
    for number in range(num_documents):
        lines = []
        for _ in range(draw.integers(3, 12)):
            end = ";\n" if draw.random() < 0.4 else "\n"
            lines.append(f"{draw.choice(names)} = {draw.choice(names)} + {draw.integers(10)}{end}")
        scores = [0.1 if ";" in line else 0.0 for line in lines]
        rows.append(
            {
                "id": f"{number:032x}",
                "texts": lines,
                "scores": scores,
                "avg_score": float(np.mean(scores)),
                "num_sents": len(lines),
                "errors": [None] * len(lines),
                "meta": "{}",
            }
        )
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "part-00000.parquet")
    return folder


def write_inputs(folder: Path, *, conditional: bool = False, **training: Any) -> Path:
    """Write corpus, tokenizer and task file below `folder`. Return the task file's path."""
    corpus = write_corpus(folder / "scored")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    dataset: dict[str, Any] = {"datasets": [str(corpus)], "seq_length": SEQ_LENGTH, "held_out_fraction": 0.1}
    tokens = [GOOD, BAD] if conditional else []
    if conditional:
        dataset["conditional_training_config"] = {"threshold": 0.0}
    values = {
        "dataset": dataset,
        "tokenizer": {"path_or_name": str(folder / "tokenizer"), "special_tokens": tokens},
        "model": {
            "path_or_name": None,
            "model_type": "gpt2",
            "num_additional_tokens": len(tokens),
            "config_kwargs": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": SEQ_LENGTH},
        },
        "scoring": {"segmenter": "lines", "scorers": [{"class_name": "PEP8Scorer"}]},
        "training": {
            "num_tokens": 8000,
            "effective_batch_size": 8,
            "per_device_train_batch_size": 2,
            "learning_rate": 0.01,
            "precision": "fp32",
            "resources_per_worker": {"CPU": 1},
            "save_steps": 10,
        }
        | training,
    }
    task = folder / "pep8" / "pretrain.yml"
    task.parent.mkdir()
    task.write_text(yaml.safe_dump(values), encoding="utf-8")
    return task


def arguments(task: Path, *overrides: str, name: str = "run") -> list[str]:
    """Return arguments of jobs.train_lm for a run next to the task's inputs."""
    given = ["--task", str(task), "--run-name", name, "--storage-path", str(task.parents[1] / "runs")]
    return given + (["--override", *overrides] if overrides else [])


def run_folder(task: Path, name: str = "run") -> Path:
    return task.parents[1] / "runs" / name


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {row["train/global_step"]: row["train/loss"] for row in metrics(run) if "train/loss" in row}


def checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())
