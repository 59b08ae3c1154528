"""The models of a worker beside the one that learns: its weights for sampling, and the reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from phf_ray.config import Config
from phf_ray.generation.engine import Engine
from phf_ray.generation.requests import EngineSettings
from phf_ray.models.language_model import LanguageModel
from phf_ray.rollouts.forward import Forward, ForwardShare, TokenNumbers
from phf_ray.rollouts.token_rows import TokenRows
from phf_ray.training.snapshot import take_snapshot
from phf_ray.training.start import initial_model, set_up_layers
from phf_ray.training.state import TrainState, unwrapped


def engine_of(model: LanguageModel, tokenizer: Any, *, max_batch: int) -> Engine:
    """Return an engine that draws from the model, which stays in its mode."""
    settings = EngineSettings(device=str(next(model.parameters()).device), max_batch=max_batch)
    was_training = model.training
    engine = Engine(model.backbone, tokenizer, settings=settings)
    model.train(was_training)
    return engine


class SamplingPolicy:
    """The learning model as an engine. Where its weights are sharded, a whole copy on each rank that is renewed."""

    def __init__(self, state: TrainState, *, tokenizer: Any, max_batch: int, build: Any):
        """`build` makes a model of the same shape."""
        self._state, self._tokenizer, self._max_batch, self._build = state, tokenizer, max_batch, build
        self._copy: LanguageModel | None = None

    def engine(self) -> Engine:
        """Return an engine with the weights of now. Collective where they are sharded."""
        return engine_of(self._whole_model(), self._tokenizer, max_batch=self._max_batch)

    def _whole_model(self) -> LanguageModel:
        module = unwrapped(self._state.model)
        assert isinstance(module, LanguageModel)
        if not isinstance(self._state.model, FSDPModule):
            return module
        snapshot = take_snapshot(self._state, with_optimizer=False)
        assert snapshot is not None
        if self._copy is None:
            self._copy = self._build().to(next(module.parameters()).device)
        # A frozen base is not in the snapshot, and the copy has it.
        self._copy.load_state_dict(snapshot.model, strict=False)
        return self._copy


class Reference:
    """The model that the run starts from: the policy without its adapter, or a frozen copy of its own."""

    def __init__(
        self,
        state: TrainState,
        *,
        config: Config,
        checkpoint_path: str | None,
        tokenizer: Any,
        runs_inside_policy: bool = False,
    ):
        """`runs_inside_policy`: the objective runs it in the policy's own pass, so the two can't be one model."""
        rollouts = config.rollouts
        assert rollouts is not None
        self._policy = unwrapped(state.model)
        assert isinstance(self._policy, LanguageModel)
        adapter = self._policy.adapter
        # Rows of new tokens train beside the adapter, and can't be switched off.
        self.is_shared = adapter is not None and adapter.first_new_row is None and not runs_inside_policy
        model: nn.Module = state.model
        if not self.is_shared:
            device = next(self._policy.parameters()).device
            own = initial_model(config, checkpoint_path=checkpoint_path, tokenizer=tokenizer)
            set_up_layers(own, config, device=device, compiles=False)
            model = own.to(device).eval().requires_grad_(False)
        self.model = unwrapped(model)
        self._forward = Forward(model, precision=config.training.precision, temperature=rollouts.temperature)

    def logprobs(self, rows: TokenRows, share: ForwardShare) -> TokenNumbers:
        """See `Forward.logprobs`."""
        with self._without_adapter():
            return self._forward.logprobs(rows, share)

    @contextmanager
    def _without_adapter(self) -> Iterator[None]:
        if not self.is_shared:
            yield
            return
        assert isinstance(self._policy, LanguageModel)
        backbone = self._policy.backbone
        backbone.disable_adapters()
        try:
            yield
        finally:
            backbone.enable_adapters()
