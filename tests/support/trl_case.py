"""A tiny GPT-2 with weights of its own, and pairs of answers, on which TRL's trainers were measured."""

import numpy as np
import places
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

TEXTS = [
    ("say: ", "it is round", "no"),
    ("say the w", "orld is round", "hole"),
    ("say it", " " * 3 + "and then some more words that are cut", "no"),
    ("a question that is so long that it leaves no room for any answer at all", "yes", "no"),
]
"""Pairs whose tokens merge across the border of prompt and answer, are cut, and are left out."""
TEXT_LENGTH = 16


def make_text_tokenizer(*, begins):
    """`begins`: whether a text gets a token at its beginning, as LLaMA's do."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(places.GOLDEN / "tokenizer")
    if begins:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = begin
    return tokenizer


WORDS = [f"w{number}" for number in range(40)]
PAIRS = [
    ("w1 w2 w3", "w4 w5 w6 w7", "w8"),
    ("w9", "w10 w11", "w12 w13 w14 w15 w16"),
    ("w17 w18 w19 w20", "w21", "w22 w23"),
    ("w24 w25", "w26 w27 w28", "w29 w30 w31"),
]
LOSSES = {
    "sigmoid": {},
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 0.1},
    "nca_pair": {},
    "robust": {"label_smoothing": 0.1},
    "bco_pair": {},
    "sppo_hard": {},
    "apo_zero": {},
    "apo_down": {},
}
BETA = 0.3
REWARDS = {
    "reward": {},
    "reward_centred": {"center_rewards_coefficient": 0.05},
    "reward_margin": {},
    "reward_margins": {},
}
"""Cases of RewardTrainer. `reward_margin` has MARGIN in each pair, `reward_margins` those of MARGINS."""
MARGINS = (0.5, -0.2, 0.0, 1.5)
MARGIN = 0.5
LABELS = (True, False, True, True)
"""Of the answers to PAIRS in KTOTrainer's cases: the first answer if it is good, the second if it is bad."""
KTO_LOSSES = {
    "kto": {},
    "kto_weights": {"desirable_weight": 0.7, "undesirable_weight": 1.9},
    "kto_clamped": {},
    "apo_zero_unpaired": {},
}
"""`kto_clamped`: policy and reference are exchanged, and the estimate of the KL is negative."""
FIRST = 3
"""Pairs of the first of the two micro-batches of the cases `step_...`; the second has the others."""
SFT_WEIGHT = 0.4
"""Of the likelihood of chosen answers in `step_dpo`."""


def make_tokenizer():
    vocabulary = {word: index for index, word in enumerate(["<|start|>", "<|end|>", "<|pad|>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|pad|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def make_model(seed):
    """Weights come from numpy, whose stream of random numbers is the same in every version."""
    config = GPT2Config(
        vocab_size=len(WORDS) + 3,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = GPT2LMHeadModel(config)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.from_numpy(0.4 * generator.standard_normal(parameter.shape)))
    return model


def make_reward_model(seed):
    """The same trunk, with a head of one number."""
    backbone = make_model(seed)
    backbone.config.num_labels = 1
    model = GPT2ForSequenceClassification(backbone.config)
    model.transformer = backbone.transformer
    weight = np.random.default_rng(seed + 100).standard_normal((1, 16))
    with torch.no_grad():
        model.score.weight.copy_(torch.from_numpy(weight))
    return model


def gradients_of(model):
    """A fingerprint of each gradient: its norm, and its product with a fixed direction."""
    found = {}
    generator = np.random.default_rng(99)
    for name, parameter in model.named_parameters():
        direction = generator.standard_normal(parameter.shape)
        gradient = parameter.grad.double().numpy()
        found[name] = [float(np.linalg.norm(gradient)), float((gradient * direction).sum())]
    return found
