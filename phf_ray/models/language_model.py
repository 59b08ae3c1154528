"""Any causal LM from transformers with a linear head, and a value head if configured.

The trunk returns hidden states, not logits: the objective multiplies them with the head itself, chunk by chunk. A model
whose logits are not `scale * (hidden @ weight.T + bias)` is refused before training.

The vocabulary may be padded (`pad_vocab_to_multiple_of`): ids from `len(tokenizer)` up to `config.vocab_size` belong to
no token. Training makes them improbable, not impossible, so code that samples must mask them.

Shapes: B sequences, S tokens, D hidden size, V rows of the head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from phf_ray.errors import ConfigError
from phf_ray.models.adapters import Adapter, token_parameters
from phf_ray.models.backbone import first_words
from phf_ray.models.document_attention import states_by_document, use_attention_by_document
from phf_ray.models.forgetful_mask import ForgetfulMask, check_takes_masks
from phf_ray.models.heads import ValueHead
from phf_ray.models.probing import probe_logit_scale
from phf_ray.objectives.base import Objective, ObjectiveOutput, target_logprobs
from phf_ray.records import TokenKind


class LanguageModel(nn.Module):
    """A causal LM that passes its hidden states, head and values to an objective inside one forward call.

    Outside that call, FSDP has not gathered the parameters, and DDP does not see how they are used.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        value_head: ValueHead | None = None,
        detach_values: bool = False,
        is_probed: bool = True,
    ) -> None:
        """Raises ConfigError if the model's head is not linear or its attention is not causal. `is_probed`: false for a
        model on the meta device, which can't run."""
        super().__init__()
        self.logit_scale = probe_logit_scale(backbone) if is_probed else 1.0
        self.backbone = backbone
        self.value_head = value_head
        self.detach_values = detach_values
        self.has_document_mask = False
        self._attends_by_document = False
        self.forgetful: ForgetfulMask | None = None
        self.adapter: Adapter | None = None
        """Set if the weights are frozen, all but those of an adapter, new tokens and the value head."""

    def mask_documents(self) -> None:
        """Make `forward` restart positions at each document of a block and hide other documents from its tokens.

        Raises ConfigError if the model does not separate documents by their positions. The price on a GPU: each block
        needs a mask of tokens x tokens, with which torch's attention can't use its fastest kernels.
        """
        _probe_document_mask(self)
        self.has_document_mask = True
        self._attends_by_document = use_attention_by_document(self.backbone) and _separates_documents(
            self, lambda ids_BS, positions_BS: self._states_by_document(ids_BS, positions_BS, positions_BS >= 0)
        )

    def forget(self, mask: ForgetfulMask) -> None:
        """Make `forward` hide some tokens of the batches whose place it is told. Raises ConfigError if it can't."""
        check_takes_masks(self.backbone)
        self.forgetful = mask

    def disable_dropout(self) -> None:
        """Make training compute what inference does: an answer is compared with a reference that has no dropout."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)

    def use_attention(self, implementation: str) -> None:
        """Compute attention with this code of transformers. Raises ConfigError if the model or the machine lacks it."""
        try:
            self.backbone.set_attn_implementation(implementation)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"model.attn_implementation: {implementation}: {first_words(error)}; install what it needs on every "
                "node, or use sdpa"
            ) from None
        if self.backbone.config._attn_implementation != implementation:
            raise ConfigError(
                f"model.attn_implementation: {type(self.backbone).__name__} has no {implementation}; remove the key"
            )

    def checkpoint_activations(self) -> None:
        """Make each layer keep only its input; the backward pass computes the layer again."""
        self.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def compile_blocks(self, device: torch.device, *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile each layer for the device that it will run on.

        The layers share their code, so torch compiles it once, and FSDP's hooks and checkpointing stay outside. The
        rest runs uncompiled; it costs little compared with the layers and the loss's products.

        Raises ConfigError if torch can't compile for that device.
        """
        if device.type == "cpu" and backend == "inductor" and " " in torch.__file__:
            # Without this check, g++ fails at the first step and prints pages of errors.
            raise ConfigError(
                f"torch can't compile for the CPU from {torch.__file__}: it passes that path to g++ without quotes; "
                "remove torch_compile, or create the environment in a folder without a space in its path"
            )
        self._attends_by_document = False  # lengths of documents are no shapes that a compiler could count on
        for block in transformer_blocks(self):
            block.compile(backend=backend)

    def forward(
        self,
        input_ids_BS: Tensor,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        objective: Objective,
        channels_BS: Mapping[str, Tensor] | None = None,
        first_block: int | None = None,
    ) -> ObjectiveOutput:
        """`first_block`: place of the batch in the training order, for a forgetful mask; None: nothing is hidden."""
        hidden_BSD = self._trained_states(input_ids_BS, token_kinds_BS, first_block)
        return self.learn(hidden_BSD, input_ids_BS, token_scores_BS, token_kinds_BS, objective, channels_BS)

    def learn(
        self,
        hidden_BSD: Tensor,
        input_ids_BS: Tensor,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        objective: Objective,
        channels_BS: Mapping[str, Tensor] | None = None,
    ) -> ObjectiveOutput:
        """Pass hidden states, head and values to the objective."""
        scaled_BSD, weight_VD, bias_V = self._operands(hidden_BSD)
        output: ObjectiveOutput = objective(
            hidden_BSD=scaled_BSD,
            head_VD=weight_VD,
            head_bias_V=bias_V,
            input_ids_BS=input_ids_BS,
            token_scores_BS=token_scores_BS,
            token_kinds_BS=token_kinds_BS,
            values_BS=self.token_values(hidden_BSD, input_ids_BS, token_kinds_BS),
            channels_BS=channels_BS,
        )
        return output

    def predict_values(self, input_ids_BS: Tensor, token_kinds_BS: Tensor) -> Tensor | None:
        """What the value head or critic says of each token, as `forward` hands it to an objective: (B, S); None without
        one."""
        return self.values(self._trained_states(input_ids_BS, token_kinds_BS))

    def predict_logprobs(self, input_ids_BS: Tensor, token_kinds_BS: Tensor, *, temperature: float = 1.0) -> Tensor:
        """Log-probability of each learned token, in nats, (B, S); 0 for all others. No gradient."""
        hidden_BSD, weight_VD, bias_V = self.operands(input_ids_BS, token_kinds_BS)
        if temperature != 1:
            hidden_BSD, bias_V = hidden_BSD / temperature, None if bias_V is None else bias_V / temperature
        return target_logprobs(hidden_BSD, weight_VD, bias_V, input_ids_BS=input_ids_BS, token_kinds_BS=token_kinds_BS)

    def operands(self, input_ids_BS: Tensor, token_kinds_BS: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return hidden states (B, S, D), head and bias whose plain product is the logits that `forward` learns."""
        return self._operands(self._trained_states(input_ids_BS, token_kinds_BS))

    def _operands(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return states, weight and bias whose plain product is the logits: the scale is in the states and the bias."""
        weight_VD, bias_V, scale = self.head()
        if scale == 1:
            return hidden_BSD, weight_VD, bias_V
        return hidden_BSD * scale, weight_VD, None if bias_V is None else bias_V * scale

    def _trained_states(self, input_ids_BS: Tensor, token_kinds_BS: Tensor, first_block: int | None = None) -> Tensor:
        if self.forgetful is not None and first_block is not None and first_block >= 0:
            return self._forgetful_states(self.forgetful, input_ids_BS, token_kinds_BS, first_block)
        if not self.has_document_mask:
            return self.hidden_states(input_ids_BS)
        positions_BS, kept_BS = document_positions(token_kinds_BS), token_kinds_BS != int(TokenKind.PAD)
        if self._attends_by_document and input_ids_BS.device.type == "cpu" and kept_BS.any():
            return self._states_by_document(input_ids_BS, positions_BS, kept_BS)
        return self.hidden_states(input_ids_BS, position_ids_BS=positions_BS)

    def _forgetful_states(
        self, forgetful: ForgetfulMask, input_ids_BS: Tensor, token_kinds_BS: Tensor, first_block: int
    ) -> Tensor:
        positions_BS = document_positions(token_kinds_BS)
        embedding: Any = self.backbone.get_input_embeddings()
        mask_B1QK = forgetful.additive(
            positions_BS,
            first_block=first_block,
            by_document=self.has_document_mask,
            dtype=embedding.weight.dtype,
        )
        return self.hidden_states(
            input_ids_BS,
            attention_mask=mask_B1QK,
            position_ids_BS=positions_BS if self.has_document_mask else None,
        )

    def _states_by_document(self, input_ids_BS: Tensor, positions_BS: Tensor, kept_BS: Tensor) -> Tensor:
        return states_by_document(self.hidden_states, input_ids_BS, positions_BS, kept_BS)

    def hidden_states(
        self, input_ids_BS: Tensor, *, attention_mask: Tensor | None = None, position_ids_BS: Tensor | None = None
    ) -> Tensor:
        """Return the head's input, shape (B, S, D).

        A new document begins wherever positions do not go up by one. Without an attention mask, a token sees only its
        own document.
        """
        outputs = self.backbone.base_model(
            input_ids=input_ids_BS.long(),
            attention_mask=attention_mask,
            use_cache=False,
            **({} if position_ids_BS is None else {"position_ids": position_ids_BS}),
        )
        hidden_BSD: Tensor = outputs.last_hidden_state
        return hidden_BSD

    def head(self) -> tuple[Tensor, Tensor | None, float]:
        """Return weight (V, D), bias (V) or None, and scale: logits are scale * (hidden @ weight.T + bias)."""
        output = self.backbone.get_output_embeddings()
        return output.weight, getattr(output, "bias", None), self.logit_scale

    def head_name(self) -> str:
        """Return the name of the head's weight in the state dict."""
        weight = self.backbone.get_output_embeddings().weight
        return next(name for name, each in self.named_parameters(remove_duplicate=False) if each is weight)

    def stored_tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint must hold, by name: all tensors, or those that train if the base model is frozen."""
        tensors: dict[str, Tensor] = self.state_dict(keep_vars=True)
        if self.adapter is None:
            return tensors
        return {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    def partly_trained(self) -> list[nn.Parameter]:
        """Return the parameters of which only the rows from `adapter.first_new_row` on train."""
        if self.adapter is None or self.adapter.first_new_row is None:
            return []
        return token_parameters(self.backbone)

    def parts(self) -> "list[LanguageModel]":
        """Return the models that run in one forward call: this one and, of a policy that has one, its critic."""
        return [self]

    def token_values(self, hidden_BSD: Tensor, _input_ids_BS: Tensor, _token_kinds_BS: Tensor) -> Tensor | None:
        """Return the values of these tokens, whose hidden states are known."""
        return self.values(hidden_BSD)

    def values(self, hidden_BSD: Tensor) -> Tensor | None:
        """Return value predictions, shape (B, S), or None without a value head."""
        if self.value_head is None:
            return None
        values_BS: Tensor = self.value_head(hidden_BSD.detach() if self.detach_values else hidden_BSD)
        return values_BS


def document_positions(token_kinds_BS: Tensor) -> Tensor:
    """Return each token's position in its document, int64 (B, S): 0 at an end-of-text token, which begins a document.

    If a document continues from an earlier block, its positions count from the start of this block. Padding has
    position 0: behind short examples it may be longer than the model has positions.
    """
    places_S = torch.arange(token_kinds_BS.shape[1], device=token_kinds_BS.device)
    # A plain number: torch.compile evaluates `tensor == TokenKind.END_OF_TEXT` to a bool.
    begins_BS = torch.where(token_kinds_BS == int(TokenKind.END_OF_TEXT), places_S, 0).cummax(dim=1).values
    return torch.where(token_kinds_BS == int(TokenKind.PAD), 0, places_S - begins_BS)


def _probe_document_mask(model: LanguageModel) -> None:
    if not _separates_documents(model, lambda ids, positions: model.hidden_states(ids, position_ids_BS=positions)):
        raise ConfigError(
            f"{type(model.backbone).__name__}: the model can't tell a block's documents apart by their positions; set "
            "training.document_mask: false or choose another model"
        )


def _separates_documents(model: LanguageModel, run: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Run the model to check that the second document of a block gets the same states as on its own."""
    weight = model.head()[0]
    ids_BS = torch.arange(4, device=weight.device)[None] + weight.shape[0] // 2
    positions_BS = torch.tensor([[0, 1, 0, 1]], device=weight.device)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            together_BSD = run(ids_BS, positions_BS)
            alone_BSD = model.hidden_states(ids_BS[:, 2:])
        return torch.allclose(together_BSD[:, 2:].float(), alone_BSD.float(), rtol=1e-3, atol=1e-5)
    except TypeError:  # the model takes no positions
        return False
    finally:
        model.train(was_training)


def transformer_blocks(model: LanguageModel) -> list[nn.Module]:
    """Return the trunk's repeated layers in order; FSDP shards them and checkpointing wraps them one by one."""
    lists = [module for module in model.backbone.base_model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ConfigError(f"{type(model.backbone).__name__} has no list of layers; use parallelism: ddp")
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in lists]
    return list(lists[sizes.index(max(sizes))])
