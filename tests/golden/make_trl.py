"""Writes trl.json: losses and gradients of TRL's trainers on a tiny GPT-2, for tests/unit/training/test_like_trl.py.

PYTHONPATH=tests/support python tests/golden/make_trl.py > tests/golden/trl.json
"""

import importlib.metadata
import json
import sys
import tempfile

import numpy as np
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl_case import (
    BETA,
    LOSSES,
    MARGIN,
    PAIRS,
    REWARDS,
    gradients_of,
    make_model,
    make_reward_model,
    make_tokenizer,
)


def measured(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    trainer.model.zero_grad()
    loss.backward()
    figures = {name: float(np.mean(values)) for name, values in trainer._metrics["eval"].items()}
    return {"loss": float(loss), "gradients": gradients_of(trainer.model), "metrics": figures}


def main():
    common = {
        "per_device_train_batch_size": len(PAIRS),
        "report_to": [],
        "use_cpu": True,
        "max_length": 64,
        "gradient_checkpointing": False,
        "bf16": False,
    }
    rows = [
        {"prompt": f"<|start|> {prompt}", "chosen": f" {chosen} <|end|>", "rejected": f" {rejected} <|end|>"}
        for prompt, chosen, rejected in PAIRS
    ]
    values = {}
    with tempfile.TemporaryDirectory() as folder:
        for loss_type, settings in LOSSES.items():
            trainer = DPOTrainer(
                make_model(1),
                ref_model=make_model(2),
                processing_class=make_tokenizer(),
                train_dataset=Dataset.from_list(rows),
                args=DPOConfig(folder, loss_type=[loss_type], beta=BETA, **settings, **common),
            )
            values[loss_type] = measured(trainer)
        trainer = SFTTrainer(
            make_model(1),
            processing_class=make_tokenizer(),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]),
            args=SFTConfig(folder, completion_only_loss=True, **common),
        )
        values["sft"] = measured(trainer)
        for name, settings in REWARDS.items():
            margin = {"margin": MARGIN} if name == "reward_margin" else {}
            trainer = RewardTrainer(
                make_reward_model(1),
                processing_class=make_tokenizer(),
                train_dataset=Dataset.from_list([{**row, **margin} for row in rows]),
                args=RewardConfig(folder, **settings, **common),
            )
            values[name] = measured(trainer)
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    json.dump({"made_by": "tests/golden/make_trl.py", "versions": versions, "values": values}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
