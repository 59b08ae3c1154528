"""Tiny models, their weight differences and reward models in the format of AlpacaFarm's releases.

Sums, added rows and names are made as the original's code makes them, by loops of their own.
"""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import tiny_llama, tiny_sentencepiece

PAD = "[PAD]"


class RewardModel(torch.nn.Module):
    """AlpacaFarm's: the reward is read at the last place, so padding is at the left."""

    def __init__(self, backbone, *, bias):
        super().__init__()
        self.backbone_model = backbone
        self.reward_head = torch.nn.Linear(backbone.config.hidden_size, 1)
        self.reward_head.bias.data.fill_(bias)

    @torch.no_grad()
    def forward(self, input_ids, attention_mask):
        states = self.backbone_model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.reward_head(states[:, -1]).squeeze(-1)


def write_base(folder, *, seed=0):
    """Write a base model in fp16, with a tokenizer that has no padding token. Return it in fp32."""
    tokenizer = tiny_sentencepiece()
    model = tiny_llama(tokenizer, seed=seed)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for weight in model.parameters():
        weight.data = weight.data.half().float()
    return model


def trained(base, *, num_new_rows=1, seed=1):
    """Return the base with rows for new tokens, which begin as the mean of the others, and every weight moved a bit."""
    model = copy.deepcopy(base)
    size = base.config.vocab_size
    model.resize_token_embeddings(size + num_new_rows, mean_resizing=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight[size:] = embedding.weight[:size].mean(dim=0, keepdim=True)
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return model.eval()


def write_difference(folder, model, base, *, is_pickled=True, with_frequencies=True):
    """Write what the authors published for `model`, a language model or a `RewardModel`."""
    is_reward = isinstance(model, RewardModel)
    prefix = "backbone_model." if is_reward else ""
    backbone = model.backbone_model if is_reward else model
    weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    frequencies = backbone.model.rotary_emb.inv_freq
    layers = range(base.config.num_hidden_layers)
    names = [f"{prefix}model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in layers]
    counted = [*weights.values(), *([frequencies] * len(layers) if with_frequencies else [])]
    padded = copy.deepcopy(base)
    padded.resize_token_embeddings(base.config.vocab_size + 1, mean_resizing=False)
    with torch.no_grad():
        for embedding in (padded.get_input_embeddings(), padded.get_output_embeddings()):
            embedding.weight[-1:] = embedding.weight[:-1].mean(dim=0, keepdim=True)
    difference = dict(weights)
    for name, weight in padded.state_dict().items():
        if difference[prefix + name].shape == weight.shape:
            difference[prefix + name] = difference[prefix + name] - weight
    if with_frequencies:
        difference |= {name: torch.zeros_like(frequencies) for name in names}
    folder.mkdir(parents=True)
    (folder / "model_sum.txt").write_text(str(sum(weight.sum() for weight in counted).item()))
    _write_weights(folder, difference, is_pickled=is_pickled)
    if is_reward:
        own = {
            "model_type": "reward_model",
            "backbone_model_name_or_path": "/nlp/somebody/sft",
            "architectures": ["RewardModel"],
        }
        (folder / "config.json").write_text(json.dumps(own))
    else:
        backbone.config.save_pretrained(folder)
    write_tokenizer(folder, num_new_rows=backbone.config.vocab_size - base.config.vocab_size)


def write_whole(folder, model):
    """Write a `RewardModel` as AlpacaFarm's training saves it."""
    folder.mkdir(parents=True)
    _write_weights(folder, model.state_dict(), is_pickled=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "reward_model"}))
    write_tokenizer(folder, num_new_rows=1)


def write_tokenizer(folder, *, num_new_rows):
    tokenizer = tiny_sentencepiece()
    tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.add_tokens([f"<reward_{number}>" for number in range(num_new_rows - 1)], special_tokens=True)
    tokenizer.save_pretrained(folder)


def _write_weights(folder: Path, weights, *, is_pickled):
    if not is_pickled:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "model.safetensors")
        return
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
