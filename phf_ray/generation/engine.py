"""Samples from a causal language model, many requests at once.

Requests join and leave the batch at every step (continuous batching). The policy, and its price:

- Keys and values live in slots, see `cache`.
- A token's random number depends only on (seed, choice, position), and sampling inverts the cumulative distribution
  in vocabulary order. So a request's text does not depend on the rest of the batch, unless float noise moves a
  boundary across the random number.
- Reported log-probabilities are the model's own: of the raw logits, before temperature, bans and biases.
- Only the model sees the control tokens that the engine inserts or replaces.

Shapes: B requests in the step, L positions, P positions of the longest new prompt, R distinct new prompts, V
vocabulary.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from phf_ray.checkpoint import CheckpointInfo, Control, starts_with_end_of_text
from phf_ray.generation.active import ActiveRequest
from phf_ray.generation.attention import AttentionMasks
from phf_ray.generation.cache import KeyValueSlots
from phf_ray.generation.logprobs import LogprobRecord, logprob_records
from phf_ray.generation.penalties import penalize
from phf_ray.generation.reach import find_context
from phf_ray.generation.requests import Completion, EngineSettings, GenerationRequest
from phf_ray.generation.sampling import sample_tokens
from phf_ray.generation.tokens import TokenStrings, end_ids_of

# Limits of one prefill: padded positions, and logits (256 MiB in float32) if a request wants them for its prompt.
PREFILL_TOKENS = 4096
PREFILL_LOGITS = 2**26
# Prompts of up to this many tokens share a pass, because padding them costs little. A longer prompt shares a pass only
# with prompts of at least half its length.
SHORT_PROMPT = 32


class Engine:
    """A model and its batch of requests. Not thread-safe: call `add` and `step` from one thread only.

    Any thread may call `prepare` and `cancel`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        info: CheckpointInfo | None = None,
        control: Control | None = None,
        settings: EngineSettings | None = None,
    ):
        """`control` overrides the one in `info`; it is for checkpoints that have control tokens but no phf.json.

        Raises ConfigError if the architecture's results in a batch of ragged rows differ from those of a row alone.
        """
        self.settings = settings or EngineSettings()
        self.model = model.eval()
        self.info = info
        self._config = model.config.get_text_config()
        control = control or (info.control if info is not None else None)
        self.strings = TokenStrings(
            tokenizer,
            num_logits=self._config.vocab_size,
            control=control,
            starts_with_eos=starts_with_end_of_text(info, control),
            end_ids=end_ids_of(model.config, self._config, getattr(model, "generation_config", None)),
        )
        self._waiting: deque[ActiveRequest] = deque()
        self._joining: list[ActiveRequest] = []
        self._active: list[ActiveRequest] = []
        self._slots: KeyValueSlots | None = None
        self._bytes_per_position: int | None = None
        self._parameters: tuple[Tensor, Tensor, Tensor] | None = None
        self._masks = AttentionMasks(self._config)
        self.aligns_right = False
        """Whether a step reads all rows as if they ended at the same position; see `KeyValueSlots.aim`."""
        self.failed_all = False
        """Whether the model could run none of the last step's prompts."""
        self.context = 0
        """Positions that a request may use."""
        self.context = find_context(self, self._config, limit=self.settings.max_context)

    @property
    def num_active(self) -> int:
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @cached_property
    def _invalid(self) -> Tensor:
        invalid_V = torch.ones(self._config.vocab_size, dtype=torch.bool, device=self.model.device)
        invalid_V[torch.tensor(sorted(self.strings.valid_ids), device=self.model.device)] = False
        return invalid_V

    def prepare(self, request: GenerationRequest) -> ActiveRequest:
        """Return the request, ready for `add`. Raises RequestError if this model can't serve it."""
        return ActiveRequest(request, self.strings, context=self.context)

    def add(self, active: ActiveRequest) -> None:
        self._waiting.append(active)

    def cancel(self, active: ActiveRequest) -> None:
        """Remove the request from the batch at the next step."""
        active.cancelled = True

    @torch.inference_mode()
    def step(self) -> list[ActiveRequest]:
        """Prefill new prompts, in passes by length, if any fit; else decode one token for every request in the batch.

        Returns the requests that advanced; finished requests have left the batch.
        """
        self._retire()
        self._joining = joining = self._next_joining()
        self.failed_all = False
        if joining:
            passes = [done for group in _by_length(joining) for done in self._prefill(group)]
        elif self._active:
            passes = [(list(self._active), self._decode())]
        else:
            return []
        advanced = [active for group, _ in passes for active in group]
        self.failed_all = not advanced
        if advanced:
            self._advance(advanced, torch.cat([logits_BV for _, logits_BV in passes]))
        self._retire()
        return list(dict.fromkeys([*advanced, *joining]))

    def fail_all(self, reason: str) -> list[ActiveRequest]:
        """Fail every request with `reason`. After an error in the model the slots can't be trusted."""
        # Requests that were about to join may be neither waiting nor active.
        failed = list(dict.fromkeys([*self._active, *self._joining, *self._waiting]))
        for active in failed:
            active.error = reason
        self._active, self._joining, self._slots, self._parameters = [], [], None, None
        self._waiting.clear()
        return failed

    def _next_joining(self) -> list[ActiveRequest]:
        joining: list[ActiveRequest] = []
        prompts: set[tuple[int, ...]] = set()
        longest = max((active.num_positions for active in self._active), default=0)
        longest_prompt, wants_all = 0, False
        while self._waiting and len(self._active) + len(joining) < self.settings.max_batch:
            candidate = self._waiting[0]
            if candidate.cancelled:
                self._waiting.popleft()
                continue
            longest = max(longest, candidate.num_positions)
            longest_prompt = max(longest_prompt, len(candidate.model_ids))
            prompts.add(tuple(candidate.model_ids))
            num_tokens = len(prompts) * longest_prompt
            # If one request wants the logits of its whole prompt, the pass computes them for all the others too.
            wants_all = wants_all or candidate.wants_prompt_logprobs
            num_logits = num_tokens * self._config.vocab_size if wants_all else 0
            too_many = num_tokens > PREFILL_TOKENS or num_logits > PREFILL_LOGITS
            num_rows = len(self._active) + len(joining) + 1
            if (joining and too_many) or (num_rows > 1 and num_rows * longest > self._max_positions):
                break
            joining.append(self._waiting.popleft())
        return joining

    @property
    def _max_positions(self) -> float:
        """Number of positions that fit in `cache_gb`; infinite before the first prefill."""
        if self._bytes_per_position is None:
            return float("inf")
        return self.settings.cache_gb * 2**30 / self._bytes_per_position

    def _prefill(self, joining: list[ActiveRequest]) -> Iterator[tuple[list[ActiveRequest], Tensor]]:
        """Yield requests that got slots, with the logits of their next tokens, (B, V).

        If the model fails on prompts together, it runs each alone, so that only those at fault fail. No slot is changed
        before a pass has succeeded.
        """
        try:
            logits_RKV, prefilled, row_of, column_of = self._run_prompts(joining)
        except Exception as error:  # noqa: BLE001 - the model, the device or its memory may fail in any way
            if len(joining) == 1:
                joining[0].fail(error)
            else:
                for active in joining:
                    yield from self._prefill([active])
            return
        rows = torch.tensor(row_of, device=self.model.device)
        self._occupy(joining, prefilled, rows)
        for active, row in zip(joining, row_of, strict=True):
            if active.wants_prompt_logprobs:
                active.attempt(self._record_prompt, active, logits_RKV[row])
        yield joining, logits_RKV[rows, torch.tensor(column_of, device=self.model.device)]

    def _run_prompts(self, joining: list[ActiveRequest]) -> tuple[Tensor, DynamicCache, list[int], list[int]]:
        """Run each distinct prompt once.

        Returns logits (R, K, V) of the kept positions, keys and values, and for each request its row and the column of
        its last token.
        """
        device = self.model.device
        distinct: dict[tuple[int, ...], int] = {}
        row_of = [distinct.setdefault(tuple(active.model_ids), len(distinct)) for active in joining]
        lengths = [len(ids) for ids in distinct]
        # Padding is on the right: causal attention hides it from the prompt, and nothing reads it from a slot.
        ids_RP = torch.tensor([[*ids, *[ids[-1]] * (max(lengths) - len(ids))] for ids in distinct], device=device)
        positions_RP = torch.arange(max(lengths), device=device).expand(len(lengths), -1)
        wants_all = any(active.wants_prompt_logprobs for active in joining)
        kept = list(range(max(lengths))) if wants_all else sorted({length - 1 for length in lengths})
        prefilled = DynamicCache()
        logits_RKV = self.model(
            input_ids=ids_RP,
            # The mask hides nothing; without one, transformers warns about prompts that start with end-of-text.
            attention_mask=torch.ones_like(ids_RP),
            position_ids=positions_RP,
            past_key_values=prefilled,
            use_cache=True,
            logits_to_keep=torch.tensor(kept, device=device),
        ).logits
        column_of = {position: column for column, position in enumerate(kept)}
        return logits_RKV, prefilled, row_of, [column_of[lengths[row] - 1] for row in row_of]

    def _occupy(self, joining: list[ActiveRequest], prefilled: DynamicCache, rows: Tensor) -> None:
        if self._slots is None:
            self._slots = KeyValueSlots(prefilled)
            self._bytes_per_position = self._slots.bytes_per_position
        first_row = len(self._active)
        length = max(prefilled.get_seq_length(), *(active.cached for active in self._active), 0)
        self._reserve(first_row + len(joining), min(length + 1, self.context + 1))
        self._slots.adopt(prefilled, rows, first_row=first_row)
        for active in joining:
            active.cached = len(active.model_ids)
        self._active.extend(joining)
        self._parameters = None

    def _reserve(self, rows: int, length: int) -> None:
        assert self._slots is not None
        self._slots.reserve(rows, length, limit=self.context + 1, budget=self._max_positions)

    def _record_prompt(self, active: ActiveRequest, logits_PV: Tensor) -> None:
        ids = active.model_ids
        # The logits at i - 1 predict token i. The first token and an inserted token have no record.
        wanted = [i for i in range(1, len(ids)) if i != active.inserted_at]
        if active.inserted_at == 0:
            wanted = wanted[1:]
        count = active.request.logprobs or 0
        for begin in range(0, len(wanted), 256):
            part = wanted[begin : begin + 256]
            logits_TV = logits_PV[torch.tensor([i - 1 for i in part], device=logits_PV.device)]
            active.prompt_records.extend(logprob_records(logits_TV, [ids[i] for i in part], [count] * len(part)))

    def _decode(self) -> Tensor:
        assert self._slots is not None
        device = self.model.device
        positions = [active.cached for active in self._active]
        length = max(positions) + 1
        self._reserve(len(positions), length)
        positions_B = torch.tensor(positions, device=device)
        key_positions_BL = self._slots.aim(positions, device=str(device), aligns_right=self.aligns_right)
        logits_B1V = self.model(
            input_ids=torch.tensor([[active.model_ids[-1]] for active in self._active], device=device),
            position_ids=positions_B[:, None],
            attention_mask=self._masks.build(key_positions_BL, positions_B, dtype=self.model.dtype),
            past_key_values=self._slots,
            use_cache=True,
        ).logits
        for active in self._active:
            active.cached += 1
        return logits_B1V[:, 0]

    def _advance(self, advanced: list[ActiveRequest], logits_BV: Tensor) -> None:
        """Sample a token for each request and pass it to the request. A request that raises fails alone."""
        rows: list[int] = []
        for row, active in enumerate(advanced):
            if active.request.max_tokens == 0:
                active.attempt(active.finish, "length")
            else:
                active.attempt(active.prepare_draw)
            if not active.is_finished:
                rows.append(row)
        if not rows:
            return
        sampling = [advanced[row] for row in rows]
        raw_BV = logits_BV.float()
        if len(rows) < len(advanced):
            raw_BV = raw_BV[torch.tensor(rows, device=raw_BV.device)]
        tokens, finite = self._sample(sampling, raw_BV)
        records = _records(sampling, raw_BV, tokens)
        for row, active in enumerate(sampling):
            if finite[row]:
                active.attempt(active.accept, tokens[row], records[row])
            else:
                active.error = "the model's logits are not finite; its weights are damaged or training diverged"

    def _sample(self, sampling: list[ActiveRequest], raw_BV: Tensor) -> tuple[list[int], list[bool]]:
        device = raw_BV.device
        allowed_BV = raw_BV.masked_fill(self._invalid, -torch.inf)
        biases = [(row, id_, value) for row, active in enumerate(sampling) for id_, value in active.biases]
        if biases:
            rows, ids, values = zip(*biases, strict=True)
            where = (torch.tensor(rows, device=device), torch.tensor(ids, device=device))
            allowed_BV.index_put_(where, torch.tensor(values, device=device), accumulate=True)
        penalized = [(row, a.history) for row, a in enumerate(sampling) if a.history is not None]
        if penalized:
            penalize(allowed_BV, penalized)
        temperature_B, top_k_B, top_p_B = self._sampling_parameters(sampling, device)
        tokens_B = sample_tokens(
            allowed_BV,
            torch.tensor([active.uniform for active in sampling], dtype=torch.float64, device=device),
            temperature_B=temperature_B,
            top_k_B=top_k_B,
            top_p_B=top_p_B,
        )
        return tokens_B.tolist(), allowed_BV.amax(dim=-1).isfinite().tolist()

    def _sampling_parameters(
        self, sampling: list[ActiveRequest], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return temperature, top-k and top-p of the rows; cached while the batch stays the same."""
        if self._parameters is not None and len(sampling) == len(self._active):
            return self._parameters
        requests = [active.request for active in sampling]
        parameters = (
            torch.tensor([request.temperature for request in requests], dtype=torch.float32, device=device),
            torch.tensor([request.top_k for request in requests], device=device),
            torch.tensor([request.top_p for request in requests], dtype=torch.float64, device=device),
        )
        if len(sampling) == len(self._active):
            self._parameters = parameters
        return parameters

    def _retire(self) -> None:
        """Remove finished and cancelled requests; the last rows fill the gaps."""
        for row in reversed(range(len(self._active))):
            active = self._active[row]
            if not (active.is_finished or active.cancelled):
                continue
            last = len(self._active) - 1
            if row != last:
                assert self._slots is not None
                self._slots.move(last, row, length=self._active[last].cached)
                self._active[row] = self._active[last]
            self._active.pop()
            self._parameters = None

    def run(self, requests: Iterable[GenerationRequest]) -> list[ActiveRequest]:
        """Run requests to their end, with those that are in the engine already."""
        running = [self.prepare(request) for request in requests]
        for active in running:
            self.add(active)
        while not all(active.is_finished for active in running):
            self.step()
        return running


def _records(sampling: Sequence[ActiveRequest], raw_BV: Tensor, tokens: Sequence[int]) -> list[LogprobRecord | None]:
    """Return the log-probabilities of each row's token, None if its request wants none."""
    counts = [active.request.logprobs for active in sampling]
    rows = [row for row, count in enumerate(counts) if count is not None]
    records: list[LogprobRecord | None] = [None] * len(sampling)
    if rows:
        wanted = [count for count in counts if count is not None]
        for row, record in zip(rows, logprob_records(raw_BV[rows], [tokens[row] for row in rows], wanted), strict=True):
            records[row] = record
    return records


def _by_length(joining: Sequence[ActiveRequest]) -> list[list[ActiveRequest]]:
    """Group requests by similar prompt length, so that few positions of a pass are padding."""
    groups: list[list[ActiveRequest]] = []
    longest = -1
    for active in sorted(joining, key=lambda active: len(active.model_ids)):
        length = len(active.model_ids)
        if length > longest:
            groups.append([])
            longest = max(SHORT_PROMPT, 2 * length)
        groups[-1].append(active)
    return groups


def generate(engine: Engine, requests: Iterable[GenerationRequest]) -> list[Completion]:
    """Return one completion per request, in order; the server returns the same texts for the same requests.

    Raises RequestError for a request that the model can't serve, DataError if the model's output is not finite.
    """
    return [active.completion() for active in engine.run(requests)]
