"""Language models: any causal LM of transformers with a linear head, a value head if asked for, and their checkpoints.

Hidden states, not logits, leave the trunk: the objective multiplies them with the head itself, chunk by chunk. A model
whose logits are anything else than `scale * (hidden @ weight.T + bias)` is refused before training.

A checkpoint is an ordinary model directory plus `phf.json` and `value_head.safetensors`.

The vocabulary may be padded (`pad_vocab_to_multiple_of`): ids from `len(tokenizer)` up to `config.vocab_size` belong to
no token. Training makes them improbable, not impossible: whoever samples masks them.

Shapes: B sequences, S tokens, D hidden size, V rows of the head.
"""

import difflib
import json
import pickle
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from phf_ray.checkpoint import CheckpointInfo, read_info, write_info
from phf_ray.config import ModelConfig
from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.losses import Objective, ObjectiveOutput
from phf_ray.records import TokenKind

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_HEAD_KEY = "value_head.head.weight"
"""Name in the state dict, the original's."""

# Standard deviation of the noise on new embedding rows, which start at the mean of the others, as the original's.
_NEW_ROW_NOISE = 0.01


class ValueHead(nn.Module):
    """V = -sigmoid(h . w), in (-1, 0) as rewards are; w starts at zero, so V at -0.5.

    fp32 also under autocast: a reward of -0.001 is h . w near -7, where bf16 has steps of 0.03.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, hidden_BSD: Tensor) -> Tensor:
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            scores_BS1 = F.linear(hidden_BSD.to(exact), self.head.weight.to(exact))
        return -scores_BS1.squeeze(-1).sigmoid()


class LanguageModel(nn.Module):
    """A causal LM that gives an objective its hidden states, head and values inside one forward call.

    Inside, because there FSDP has gathered the parameters and DDP sees every use of them.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        value_head: ValueHead | None = None,
        detach_values: bool = False,
        is_probed: bool = True,
    ) -> None:
        """Raises ConfigError if the model's head is not linear or its attention not causal. `is_probed`: false for a
        model without memory, which can't be tried out."""
        super().__init__()
        self.logit_scale = _probe(backbone) if is_probed else 1.0
        self.backbone = backbone
        self.value_head = value_head
        self.detach_values = detach_values
        self.has_document_mask = False

    def mask_documents(self) -> None:
        """From now on `forward` lets no token see another document of its block, and counts positions in each anew.

        Raises ConfigError for a model that has no such positions. Price: a mask of tokens x tokens per block, with
        which torch's attention leaves its fastest kernels.
        """
        _probe_document_mask(self)
        self.has_document_mask = True

    def checkpoint_activations(self) -> None:
        """From now on each layer keeps its input only, and is computed a second time in the backward pass."""
        self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def compile_blocks(self, device: torch.device, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each layer for the device that it will run on: they share their code, so it is compiled once, and
        FSDP's hooks and checkpointing stay outside. What is around the layers runs as it is, which is little beside
        them and the loss's own products.

        Raises ConfigError where torch can't compile for that device.
        """
        if device.type == "cpu" and backend == "inductor" and " " in torch.__file__:
            # Otherwise g++ fails at the first step, with pages of its own.
            raise ConfigError(
                f"torch can't compile for processors from {torch.__file__}: it calls g++ with that path and no quotes; "
                "leave out torch_compile, or make the environment in a folder without a space in its name"
            )
        for block in transformer_blocks(self):
            block.compile(backend=backend)

    def forward(
        self, input_ids_BS: Tensor, token_scores_BS: Tensor, token_kinds_BS: Tensor, objective: Objective
    ) -> ObjectiveOutput:
        positions_BS = document_positions(token_kinds_BS) if self.has_document_mask else None
        hidden_BSD = self.hidden_states(input_ids_BS, position_ids_BS=positions_BS)
        weight_VD, bias_V, scale = self.head()
        if scale != 1:
            bias_V = None if bias_V is None else bias_V * scale
        output: ObjectiveOutput = objective(
            hidden_BSD=hidden_BSD if scale == 1 else hidden_BSD * scale,
            head_VD=weight_VD,
            head_bias_V=bias_V,
            input_ids_BS=input_ids_BS,
            token_scores_BS=token_scores_BS,
            token_kinds_BS=token_kinds_BS,
            values_BS=self.values(hidden_BSD),
        )
        return output

    def hidden_states(
        self, input_ids_BS: Tensor, *, attention_mask: Tensor | None = None, position_ids_BS: Tensor | None = None
    ) -> Tensor:
        """What the head multiplies, shape (B, S, D). Where positions do not go up by one, a new document begins, and
        without an attention mask no token sees another document than its own."""
        outputs = self.backbone.base_model(
            input_ids=input_ids_BS.long(),
            attention_mask=attention_mask,
            use_cache=False,
            **({} if position_ids_BS is None else {"position_ids": position_ids_BS}),
        )
        hidden_BSD: Tensor = outputs.last_hidden_state
        return hidden_BSD

    def head(self) -> tuple[Tensor, Tensor | None, float]:
        """Weight (V, D), bias (V) or None, scale: logits are scale * (hidden @ weight.T + bias)."""
        output = self.backbone.get_output_embeddings()
        return output.weight, getattr(output, "bias", None), self.logit_scale

    def head_name(self) -> str:
        """Of the head's weight in the state dict."""
        weight = self.backbone.get_output_embeddings().weight
        return next(name for name, each in self.named_parameters(remove_duplicate=False) if each is weight)

    def values(self, hidden_BSD: Tensor) -> Tensor | None:
        """Value predictions, shape (B, S); None without a value head."""
        if self.value_head is None:
            return None
        values_BS: Tensor = self.value_head(hidden_BSD.detach() if self.detach_values else hidden_BSD)
        return values_BS


def _head_width(backbone: PreTrainedModel) -> int:
    """Width of what the head multiplies; not every model's hidden_size (OPT's word_embed_proj_dim)."""
    head: Any = backbone.get_output_embeddings()
    width: int = head.weight.shape[1]
    return width


def _probe(backbone: PreTrainedModel) -> float:
    """The logit scale, found by running the model on four tokens with the head's output replaced by known numbers.

    By trial, not by a list of names: soft-capping (Gemma 2), a transform before the head (BERT), multipliers (Cohere,
    Granite, Falcon-H1) and whatever comes next all show in what the model does.
    """
    name = type(backbone).__name__
    head = backbone.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{name}: its head is {type(head).__name__}, not a linear layer; choose another model")
    if backbone.base_model is backbone:
        raise ConfigError(f"{name}: no trunk that gives hidden states without logits; choose another model")
    seen: dict[str, Tensor] = {}

    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["input"] = inputs[0]

    def replace_output(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # Large numbers: a cap at 30 or 50 does not show in the small logits of an untrained model.
        seen["output"] = torch.linspace(-1e3, 1e3, output.numel(), device=output.device).reshape(output.shape)
        return seen["output"].to(output.dtype)

    handles = [head.register_forward_pre_hook(keep_input), head.register_forward_hook(replace_output)]
    was_training = backbone.training
    # From the middle of the vocabulary: the first ids are often padding and the like, which some models treat apart.
    ids_BS = torch.arange(4, device=head.weight.device)[None] + head.weight.shape[0] // 2
    other_ids_BS = torch.cat([ids_BS[:, :3], ids_BS[:, :1]], dim=1)
    try:
        backbone.eval()
        with torch.no_grad():
            logits_BSV = backbone(input_ids=ids_BS, use_cache=False).logits
            hidden_BSD = backbone.base_model(input_ids=ids_BS, use_cache=False).last_hidden_state
            changed_BSD = backbone.base_model(input_ids=other_ids_BS, use_cache=False).last_hidden_state
    finally:
        backbone.train(was_training)
        for handle in handles:
            handle.remove()

    if not torch.allclose(hidden_BSD[:, :3], changed_BSD[:, :3], rtol=1e-4, atol=1e-5):
        raise ConfigError(f"{name}: a token changes the states before it, so it is no causal LM; choose another model")
    if seen["input"].shape != hidden_BSD.shape or not torch.allclose(
        seen["input"].float(), hidden_BSD.float(), rtol=1e-4, atol=1e-5
    ):
        raise ConfigError(f"{name}: hidden states are transformed before its head; choose a model with a linear head")
    scale_BSV = logits_BSV.float() / seen["output"].to(logits_BSV.dtype).float()
    scale = scale_BSV.flatten()[-1].item()
    if not torch.allclose(scale_BSV, torch.full_like(scale_BSV, scale), rtol=1e-2):
        capping = getattr(backbone.config, "final_logit_softcapping", None)
        cause = f" (final_logit_softcapping={capping})" if capping is not None else ""
        raise ConfigError(f"{name}: its logits are no linear function of hidden states{cause}; choose another model")
    return scale


def document_positions(token_kinds_BS: Tensor) -> Tensor:
    """Place of each token in its document, int64 (B, S): 0 at an end-of-text token, with which documents begin.

    What is left of a document from an earlier block is counted from the start of this one.
    """
    places_S = torch.arange(token_kinds_BS.shape[1], device=token_kinds_BS.device)
    # A plain number: torch.compile evaluates `tensor == TokenKind.END_OF_TEXT` to a bool.
    begins_BS = torch.where(token_kinds_BS == int(TokenKind.END_OF_TEXT), places_S, 0).cummax(dim=1).values
    return places_S - begins_BS


def _probe_document_mask(model: LanguageModel) -> None:
    """By trial as above: two documents in one block must give the states of each one alone."""
    weight = model.head()[0]
    ids_BS = torch.arange(4, device=weight.device)[None] + weight.shape[0] // 2
    positions_BS = torch.tensor([[0, 1, 0, 1]], device=weight.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together_BSD = model.hidden_states(ids_BS, position_ids_BS=positions_BS)
            alone_BSD = model.hidden_states(ids_BS[:, 2:])
        separated = torch.allclose(together_BSD[:, 2:].float(), alone_BSD.float(), rtol=1e-3, atol=1e-5)
    except TypeError:  # takes no positions
        separated = False
    finally:
        model.train(was_training)
    if not separated:
        raise ConfigError(
            f"{type(model.backbone).__name__}: documents of a block can't be told apart by their positions; set "
            "training.document_mask: false or choose another model"
        )


def transformer_blocks(model: LanguageModel) -> list[nn.Module]:
    """The repeated layers of the trunk, in order: what FSDP shards and activation checkpointing wraps one by one."""
    lists = [module for module in model.backbone.base_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(model.backbone).__name__} has no list of layers; use parallelism: ddp")
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))])


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, from which memory and arithmetic follow."""

    num_parameters: int
    """Each tied weight once."""
    num_multiplied: int
    """Parameters that every token is multiplied with: all but embeddings that are looked up, and the head."""
    num_layers: int
    width: int
    """Of the hidden states."""
    attention_width: int
    """Heads x size of a head."""
    num_rows: int
    """Of the head: vocabulary with padding."""

    def flops_per_token(self, length: int) -> float:
        """Forward and backward pass at context `length`: 6 N + 12 L H Q T (PaLM, appendix B)."""
        return 6.0 * self.num_multiplied + 12.0 * self.num_layers * self.attention_width * length


def shape_of(model: LanguageModel) -> Shape:
    head_VD = model.head()[0]
    looked_up = {
        id(parameter)
        for module in model.backbone.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    } - {id(head_VD)}
    config: Any = model.backbone.config
    num_heads = getattr(config, "num_attention_heads", None) or 1
    size_of_head = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return Shape(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_multiplied=sum(each.numel() for each in model.parameters() if id(each) not in looked_up),
        num_layers=len(transformer_blocks(model)),
        width=head_VD.shape[1],
        attention_width=num_heads * size_of_head,
        num_rows=head_VD.shape[0],
    )


def planned_shape(config: ModelConfig, *, tokenizer: Any) -> Shape:
    """Shape of the model that `build_model` would give, without memory for a single weight."""
    if config.from_scratch:
        architecture = _architecture(config)
        architecture.vocab_size = _num_rows(len(tokenizer), multiple=config.pad_vocab_to_multiple_of)
    else:
        architecture = _architecture(config.model_copy(update={"config_kwargs": {}}))
        num_rows = max(architecture.vocab_size, len(tokenizer))
        architecture.vocab_size = _num_rows(num_rows, multiple=config.pad_vocab_to_multiple_of)
    with torch.device("meta"):
        backbone: PreTrainedModel = AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
        backbone.tie_weights()
        value_head = None if config.model_kwargs.value_head_config is None else ValueHead(_head_width(backbone))
    return shape_of(LanguageModel(backbone, value_head=value_head, is_probed=False))


def build_model(config: ModelConfig, *, tokenizer: Any, seed: int) -> LanguageModel:
    """A model on the CPU in fp32: the same weights for the same seed, on any number of workers.

    Raises ConfigError for an architecture, field or revision that does not exist, and for a head that is not linear.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no eos_token, which separates documents; set tokenizer.special_tokens")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        make = _from_scratch if config.from_scratch else _from_pretrained
        backbone: PreTrainedModel = make(config, tokenizer)
        _start_new_rows(backbone, tokenizer, num_new=config.num_additional_tokens)
    _set_special_tokens(backbone, tokenizer)
    value_head_config = config.model_kwargs.value_head_config
    if value_head_config is None:
        return LanguageModel(backbone)
    value_head = ValueHead(_head_width(backbone))
    if not config.from_scratch and config.path_or_name is not None:
        _load_value_head(value_head, config.path_or_name, revision=config.revision)
    return LanguageModel(backbone, value_head=value_head, detach_values=value_head_config.is_detached)


def _from_scratch(config: ModelConfig, tokenizer: Any) -> PreTrainedModel:
    architecture = _architecture(config)
    architecture.vocab_size = _num_rows(len(tokenizer), multiple=config.pad_vocab_to_multiple_of)
    for key, token_id in _special_ids(tokenizer).items():
        setattr(architecture, key, token_id)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            architecture, dtype=torch.float32, trust_remote_code=False
        )
    except ValueError as error:
        raise ConfigError(f"model type {architecture.model_type!r}: {_first_words(error)}; take a causal LM") from None
    return model


def _architecture(config: ModelConfig) -> Any:
    try:
        if config.path_or_name is not None:
            stored, _ = PreTrainedConfig.get_config_dict(config.path_or_name, revision=config.revision)
        else:
            stored = {"model_type": config.model_type}
        kind = type(AutoConfig.for_model(stored.pop("model_type", None)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path_or_name={config.path_or_name!r}, model.model_type={config.model_type!r}: "
            f"{_first_words(error)}; give a model directory, or a model_type (such as gpt2) with config_kwargs"
        ) from None
    overrides = dict(config.config_kwargs)
    if "vocab_size" in overrides:
        raise ConfigError("model.config_kwargs.vocab_size follows from the tokenizer; remove it")
    # A field that the architecture does not have would be stored and ignored: the original's scale_attn_by.
    known = {*kind.__dataclass_fields__, *kind.attribute_map} - {*PreTrainedConfig.__dataclass_fields__}
    unknown = sorted(set(overrides) - known)
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(sorted(known))}"
        raise ConfigError(f"model.config_kwargs has {unknown}, which {kind.model_type} does not have; {hint}")
    named = {kind.attribute_map.get(key, key): value for key, value in overrides.items()}
    try:
        return kind(**{**stored, **named})
    except Exception as error:  # noqa: BLE001 - each architecture checks its fields with exceptions of its own
        raise ConfigError(f"model.config_kwargs={overrides}: {' '.join(str(error).split())}") from None


def _from_pretrained(config: ModelConfig, tokenizer: Any) -> PreTrainedModel:
    if config.config_kwargs:
        raise ConfigError(
            f"model.config_kwargs={config.config_kwargs} would not fit the weights of {config.path_or_name!r}; "
            "remove them or set model.from_scratch: true"
        )
    assert config.path_or_name is not None  # ModelConfig holds it
    model = _load_backbone(config.path_or_name, revision=config.revision, dtype=torch.float32)
    num_rows = _embedding_weights(model)[0].shape[0]
    num_old_ids = len(tokenizer) - config.num_additional_tokens
    if num_rows < num_old_ids:
        raise ConfigError(
            f"{config.path_or_name!r} has {num_rows} embedding rows, the tokenizer {len(tokenizer)} ids; "
            f"set model.num_additional_tokens: {len(tokenizer) - num_rows}"
        )
    wanted = _num_rows(max(num_rows, len(tokenizer)), multiple=config.pad_vocab_to_multiple_of)
    if wanted > num_rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)
        for weight in _embedding_weights(model):
            _fill_with_mean(weight, first=num_rows, last=wanted, num_known=min(num_rows, num_old_ids))
    return model


def _load_backbone(source: str | Path, *, revision: str | None, dtype: torch.dtype | None) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype if dtype is not None else "auto",
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        at = f" at revision {revision!r}" if revision is not None else ""
        raise ConfigError(f"{str(source)!r}{at} is no causal language model: {_first_words(error)}") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{source}: the weights can't be read: {_first_words(error)}; write or fetch them again"
        ) from None
    model: PreTrainedModel = loaded[0]
    loading: dict[str, Any] = loaded[1]
    # transformers draws what is missing at random and only warns.
    missing = sorted(loading["missing_keys"])
    if missing:
        raise DataError(f"{source}: the weights lack {missing[:5]} ({len(missing)} in all); write or fetch them again")
    model.train()
    return model


def _num_rows(num_ids: int, *, multiple: int | None) -> int:
    return num_ids if multiple is None else -(-num_ids // multiple) * multiple


def _embedding_weights(model: PreTrainedModel) -> list[Tensor]:
    """Input embedding and head, once if they are tied; the head's bias as a column."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    weights: list[Tensor] = [embedding.weight, head.weight]
    if weights[0] is weights[1]:
        del weights[1]
    bias = getattr(head, "bias", None)
    return weights if bias is None else [*weights, bias.view(-1, 1)]


def _start_new_rows(model: PreTrainedModel, tokenizer: Any, *, num_new: int) -> None:
    """New tokens are the tokenizer's last ids; their rows start at the mean of the others."""
    if not 0 <= num_new < len(tokenizer):
        raise ConfigError(f"model.num_additional_tokens={num_new}, but the tokenizer has {len(tokenizer)} ids")
    num_known = len(tokenizer) - num_new
    if num_new:
        for weight in _embedding_weights(model):
            _fill_with_mean(weight, first=num_known, last=len(tokenizer), num_known=num_known)


def _fill_with_mean(weight_VD: Tensor, *, first: int, last: int, num_known: int) -> None:
    with torch.no_grad():
        mean_D = weight_VD[:num_known].mean(dim=0)
        weight_VD[first:last] = mean_D + _NEW_ROW_NOISE * torch.randn(last - first, mean_D.shape[0])


def _special_ids(tokenizer: Any) -> dict[str, int]:
    """Documents begin with the end-of-text token, so it stands in for a missing begin-of-text or padding token."""
    end = tokenizer.eos_token_id
    begin = tokenizer.bos_token_id
    pad = tokenizer.pad_token_id
    return {
        "eos_token_id": end,
        "bos_token_id": end if begin is None else begin,
        "pad_token_id": end if pad is None else pad,
    }


def _set_special_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    for key, token_id in _special_ids(tokenizer).items():
        setattr(model.config, key, token_id)
        setattr(model.generation_config, key, token_id)


@dataclass(frozen=True, slots=True)
class Loaded:
    model: LanguageModel
    tokenizer: Any
    info: CheckpointInfo | None
    """None: no phf.json, as in any model directory not written by this project."""


def save_checkpoint(
    directory: str | Path,
    model: LanguageModel,
    tokenizer: Any,
    info: CheckpointInfo,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Equal weights give equal bytes. `state_dict`: the model's, where its own tensors are sharded or in use."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state_dict is None else state_dict
    # Each tied weight once: in a copied state dict nothing else shows that two of them are one.
    names = [name for name, _ in model.backbone.named_parameters()]
    names += [name for name, _ in model.backbone.named_buffers() if f"backbone.{name}" in state]
    model.backbone.save_pretrained(directory, state_dict={name: state[f"backbone.{name}"] for name in names})
    tokenizer.save_pretrained(directory)
    if VALUE_HEAD_KEY in state:
        save_file({VALUE_HEAD_KEY: state[VALUE_HEAD_KEY].detach().cpu().contiguous()}, directory / VALUE_HEAD_FILE)
    write_info(directory, info)


def load_checkpoint(
    directory: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Loaded:
    """A checkpoint of ours, one of the original's, or any causal LM directory; in eval mode, dtype None: as stored."""
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} is no model directory: it has no config.json; give the path of a checkpoint")
    info = read_info(directory)
    backbone = _load_backbone(directory, revision=None, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    value_head: ValueHead | None = ValueHead(_head_width(backbone))
    assert value_head is not None
    if not _load_value_head(value_head, str(directory), revision=None):
        value_head = None
    model = LanguageModel(backbone, value_head=value_head).to(device)
    return Loaded(model=model.eval(), tokenizer=tokenizer, info=info)


def _load_value_head(value_head: ValueHead, source: str, *, revision: str | None) -> bool:
    """False where the source has none. Ours is a file of its own, the original's a key among the model's weights."""
    weight = _find_weight(VALUE_HEAD_KEY, source, revision=revision)
    if weight is None:
        return False
    if weight.shape != value_head.head.weight.shape:
        raise DataError(
            f"{source}: {VALUE_HEAD_KEY} has shape {tuple(weight.shape)}, "
            f"the model needs {tuple(value_head.head.weight.shape)}"
        )
    with torch.no_grad():
        value_head.head.weight.copy_(weight)
    return True


def _find_weight(key: str, source: str, *, revision: str | None) -> Tensor | None:
    names = [VALUE_HEAD_FILE, "model.safetensors", "pytorch_model.bin"]
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = _find_file(index_name, source, revision=revision)
        if index is not None:
            shard = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(key)
            names += [] if shard is None else [shard]
    for name in names:
        path = _find_file(name, source, revision=revision)
        weights = {} if path is None else _read_weight(key, path)
        if key in weights:
            return weights[key]
    return None


def _find_file(name: str, source: str, *, revision: str | None) -> Path | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None


def _read_weight(key: str, path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as tensors:
            return {key: tensors.get_tensor(key)} if key in tensors.keys() else {}  # noqa: SIM118 - not a mapping
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {key: weights[key]} if key in weights else {}


def _first_words(error: BaseException) -> str:
    """transformers lists every architecture it knows in some messages."""
    return textwrap.shorten(str(error).split(". ")[0], width=200) or type(error).__name__
