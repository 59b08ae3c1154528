"""Random models of a few thousand weights, written as ordinary checkpoint directories."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

from phf_ray.checkpoint import CheckpointInfo, Control, write_info
from phf_ray.scorers.classifier import weights_hash
from phf_ray.scorers.toxicity import DESCRIPTION_FILE

END_OF_TEXT = "<|endoftext|>"
GOOD, BAD = "<|aligned|>", "<|misaligned|>"
TOXICITY_CLASSES = ["toxicity", "severe_toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit"]
TEXTS = [
    "def add(first, second):\n    return first + second\n",
    "import os\n\n\nclass Reader:\n    def read(self, path):\n        with open(path) as file:\n"
    "            return file.read()\n",
    "The quick brown fox jumps over the lazy dog. Caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 na\u00efve.\n",
]


def tiny_tokenizer(*, control: bool = False, vocab_size: int = 300) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *([GOOD, BAD] if control else [])],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    special: dict[str, Any] = {"additional_special_tokens": [GOOD, BAD]} if control else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, unk_token=END_OF_TEXT, **special
    )


def tiny_sentencepiece(*, vocab_size: int = 420) -> PreTrainedTokenizerFast:
    """Return a tokenizer like Llama's: blanks are part of words, and characters that it lacks become bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # Letters of the last text become bytes.
    trained.train_from_iterator(TEXTS[:2], trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def tiny_gpt2(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, vocab_size: int | None = None, spread: float = 0.3):
    """Return a GPT-2. Its vocabulary is padded by default: it has 16 rows more than the tokenizer has tokens.

    `spread`: how peaked the output is.
    """
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size or len(tokenizer) + 16,
        n_positions=96,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=spread,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_llama(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def write_checkpoint(
    directory: Path, *, control: str | None = None, seed: int = 0, ours: bool = True, padded: bool = True
) -> Path:
    """Write a GPT-2 checkpoint, and return its directory.

    `control`: `ban` or `retag` for a model with control tokens. `ours`: with phf.json. `padded`: with rows that belong
    to no token; only phf-ray's engine knows never to choose them.
    """
    tokenizer = tiny_tokenizer(control=control is not None)
    tiny_gpt2(tokenizer, seed=seed, vocab_size=None if padded else len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    if ours:
        tokens = Control.model_validate({"good": GOOD, "bad": BAD, "policy": control}) if control else None
        write_info(directory, CheckpointInfo(task="pep8", control=tokens, seq_length=96))
    return directory


def write_detoxify(directory: Path) -> Path:
    """Write a toxicity classifier with random weights in the format of jobs.fetch_models. Return its directory."""
    directory.mkdir(parents=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    bpe.save_model(str(directory))
    vocabulary = json.loads((directory / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (directory / "merges.txt").read_text().splitlines()[1:]]
    RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=64).save_pretrained(directory)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        type_vocab_size=1,
        num_labels=len(TOXICITY_CLASSES),
        initializer_range=0.5,
    )
    model = RobertaForSequenceClassification(config).eval()
    model.save_pretrained(directory)
    description = {"class_names": TOXICITY_CLASSES, "weights_hash": weights_hash(model)}
    (directory / DESCRIPTION_FILE).write_text(json.dumps(description))
    return directory
