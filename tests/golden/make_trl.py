"""Writes trl.json: losses and gradients of TRL's trainers on a tiny GPT-2, for tests/unit/training/test_like_trl.py.

PYTHONPATH=tests/support python tests/golden/make_trl.py > tests/golden/trl.json
"""

import contextlib
import importlib.metadata
import json
import sys
import tempfile

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl_case import (
    BETA,
    FIRST,
    KTO_LOSSES,
    LABELS,
    LOSSES,
    MARGIN,
    MARGINS,
    PAIRS,
    REWARDS,
    SFT_WEIGHT,
    TEXT_LENGTH,
    TEXTS,
    gradients_of,
    make_model,
    make_reward_model,
    make_text_tokenizer,
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


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = gradients_of(model)


def stepped(trainer):
    """Gradients of a whole step of two micro-batches, as the Trainer itself accumulates them, and its logged loss."""
    kept = KeepGradients()
    trainer.add_callback(kept)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"loss": losses[0], "gradients": kept.found}


def rows_of(trainer):
    """(ids, number of those that are given) of each row; None for a reward model, which is given no less than all."""
    trainer.args.train_sampling_strategy = "sequential"
    (batch,) = trainer.get_train_dataloader()
    given = batch.get("completion_mask")
    return [
        [ids[mask == 1].tolist(), None if given is None else int((given[row] == 0)[mask == 1].sum())]
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True))
    ]


def text_rows(folder, *, begins):
    columns = ("prompt", "chosen", "rejected")
    common = {
        "processing_class": make_text_tokenizer(begins=begins),
        "train_dataset": Dataset.from_list([dict(zip(columns, texts, strict=True)) for texts in TEXTS]),
    }
    options = {"per_device_train_batch_size": len(TEXTS), "use_cpu": True, "report_to": [], "max_length": TEXT_LENGTH}
    return {
        "dpo": rows_of(DPOTrainer(make_model(1), ref_model=make_model(2), args=DPOConfig(folder, **options), **common)),
        "reward": rows_of(RewardTrainer(make_reward_model(1), args=RewardConfig(folder, **options), **common)),
    }


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
    # The trainers print what they log.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
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
            margins = {"reward_margin": [MARGIN] * len(rows), "reward_margins": MARGINS}.get(name)
            columns = [{}] * len(rows) if margins is None else [{"margin": margin} for margin in margins]
            trainer = RewardTrainer(
                make_reward_model(1),
                processing_class=make_tokenizer(),
                train_dataset=Dataset.from_list([{**row, **margin} for row, margin in zip(rows, columns, strict=True)]),
                args=RewardConfig(folder, **settings, **common),
            )
            values[name] = measured(trainer)
        labelled = [
            {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}
            for row, label in zip(rows, LABELS, strict=True)
        ]
        for name, settings in KTO_LOSSES.items():
            policy, reference = (2, 1) if name == "kto_clamped" else (1, 2)
            loss_type = "apo_zero_unpaired" if name == "apo_zero_unpaired" else "kto"
            trainer = KTOTrainer(
                make_model(policy),
                ref_model=make_model(reference),
                processing_class=make_tokenizer(),
                train_dataset=Dataset.from_list(labelled),
                args=KTOConfig(folder, loss_type=loss_type, beta=BETA, **settings, **common),
            )
            values[name] = measured(trainer)
        accumulated = {
            **common,
            "per_device_train_batch_size": FIRST,
            "gradient_accumulation_steps": 2,
            "max_steps": 1,
            "learning_rate": 0.0,
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "train_sampling_strategy": "sequential",
            "save_strategy": "no",
        }
        trainer = SFTTrainer(
            make_model(1),
            processing_class=make_tokenizer(),
            train_dataset=Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]),
            args=SFTConfig(folder, completion_only_loss=True, **accumulated),
        )
        values["step_sft"] = stepped(trainer)
        trainer = DPOTrainer(
            make_model(1),
            ref_model=make_model(2),
            processing_class=make_tokenizer(),
            train_dataset=Dataset.from_list(rows),
            args=DPOConfig(
                folder, loss_type=["sigmoid", "sft"], loss_weights=[1.0, SFT_WEIGHT], beta=BETA, **accumulated
            ),
        )
        values["step_dpo"] = stepped(trainer)
        trainer = RewardTrainer(
            make_reward_model(1),
            processing_class=make_tokenizer(),
            train_dataset=Dataset.from_list(rows),
            args=RewardConfig(folder, **accumulated),
        )
        values["step_reward"] = stepped(trainer)
        trainer = KTOTrainer(
            make_model(1),
            ref_model=make_model(2),
            processing_class=make_tokenizer(),
            train_dataset=Dataset.from_list(labelled),
            # Two and two answers: a micro-batch of one has no mismatched answer.
            args=KTOConfig(folder, beta=BETA, **{**accumulated, "per_device_train_batch_size": 2}),
        )
        values["step_kto"] = stepped(trainer)
        rows = {str(begins): text_rows(folder, begins=begins) for begins in (False, True)}
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    json.dump(
        {"made_by": "tests/golden/make_trl.py", "versions": versions, "values": values, "rows": rows},
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    main()
