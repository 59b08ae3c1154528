"""A tiny model in the format of Detoxify's published models, and Detoxify itself with that model."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import detoxify.detoxify
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

CLASSES = ["toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "said", "that", "you", "are", "nice", "today", "because", "rain"]


def write_base(folder: Path) -> Path:
    """Write a tiny config and tokenizer in the form of `roberta-base` on the hub."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [" ".join(WORDS)], vocab_size=320, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    bpe.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64).save_pretrained(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, type_vocab_size=1,
    )  # fmt: skip
    config.save_pretrained(folder)
    return folder


def write_published(folder: Path, base: Path) -> Path:
    """Write a checkpoint file with the old position_ids and more outputs than named classes."""
    torch.manual_seed(0)
    config = transformers.RobertaConfig.from_pretrained(base, num_labels=16)
    model = transformers.RobertaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    weights = {**model.state_dict(), "roberta.embeddings.position_ids": torch.arange(66)[None]}
    arguments = {
        "model_type": "roberta-base",
        "model_name": "RobertaForSequenceClassification",
        "tokenizer_name": "RobertaTokenizer",
        "num_classes": 16,
    }
    content = {
        "config": {"arch": {"args": arguments}, "dataset": {"args": {"classes": CLASSES}}, "n_gpu": 1},
        "state_dict": weights,
        "epoch": 3,
    }
    torch.save(content, folder / "tiny.ckpt")
    sha256 = hashlib.sha256((folder / "tiny.ckpt").read_bytes()).hexdigest()
    return (folder / "tiny.ckpt").rename(folder / f"toxic_debiased-{sha256[:8]}.ckpt")


def load_original(checkpoint: Path, base: Path, folder: Path) -> Any:
    """Load the checkpoint file with Detoxify itself, which reads the number of classes from `folder`."""
    loaded = torch.load(checkpoint, weights_only=True)
    transformers.RobertaConfig.from_pretrained(base, num_labels=16).save_pretrained(folder)
    transformers.RobertaTokenizer.from_pretrained(base).save_pretrained(folder)
    predictor = detoxify.Detoxify.__new__(detoxify.Detoxify)
    predictor.model, predictor.tokenizer = detoxify.detoxify.get_model_and_tokenizer(
        **{**loaded["config"]["arch"]["args"], "model_type": str(folder)},
        state_dict=loaded["state_dict"],
        huggingface_config_path=str(folder),
    )
    predictor.class_names = CLASSES
    return predictor


def mixed_texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.choice([1, 2, 5, 12, 40, 90]))) for _ in range(count)]
