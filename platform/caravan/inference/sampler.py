"""Samples token sequences from a causal language model held in memory.

The one place where tokens are drawn: the transformers engine and the RL rollouts both use it.
The samples of a prompt share its prefill, keys and values are cached in buffers that are written
in place, and rows that have ended leave the batch.

The returned log-probabilities are those of the softmax at the sampling temperature over the whole
vocabulary (`top_p` restricts what is drawn, not what is reported), in float32: what a trainer
computes from the same weights.

Shapes: P prompts of one batch, R = P x n rows, L positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from caravan.data.records import FinishReason
from caravan.inference.decode_attention import decode_attention, suits
from caravan.inference.engine import EngineError, leaves_room, positions_of

_GROWTH = 32
"""Positions by which a key/value buffer grows."""
_COMPACT_BELOW = 0.85
"""Share of live rows under which the ended ones are taken out of the batch."""

_GPU_SHARE = 0.9
"""Of a GPU's memory, what may be in use when all rows have reached their greatest length."""

_UNITS = 2**40
"""Resolution of probabilities when a token is drawn."""


@dataclass(frozen=True)
class TokenSequence:
    """One sampled continuation."""

    token_ids: tuple[int, ...]
    """With the end token, where one was drawn."""
    logprobs: tuple[float, ...]
    """In nats, one for each token; at temperature 0, those of the softmax at temperature 1."""
    finish_reason: FinishReason


@torch.no_grad()
def generate_tokens(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    generator: torch.Generator | None = None,
    uniforms: Tensor | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> list[list[TokenSequence]]:
    """`n` continuations of each prompt, in the order of the prompts.

    Args:
        temperature: 0 is greedy.
        generator: On the model's device. The same state gives the same continuations; it is
            advanced.
        uniforms: What tokens are drawn with, instead of numbers of `generator`; see `draw`.
        batch_size: Rows decoded at once, None for all; fewer where a GPU has no room for their keys
            and values. Prompts of similar length share a batch.
        progress: Called with continuations done and in all, after each batch.
        on_tokens: Called with the next token of each row that has not ended, as it is drawn.

    Raises:
        ValueError: a prompt is empty, or fills the model. One that leaves room for less than
            `max_new_tokens` gets what fits, with the finish reason `length`.
    """
    _check(model, prompts, n, max_new_tokens)
    ends = torch.tensor(
        [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device
    )
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    at_once = batch_size or n * len(prompts)
    room = gpu_room(model.device)
    if room is not None and prompts:
        longest = max(map(len, prompts)) + max_new_tokens + _GROWTH
        at_once = min(at_once, int(room / (longest * cache_bytes(model))))
    per_batch = max(1, at_once // n)
    if uniforms is None:
        uniforms = draw(max_new_tokens, len(prompts), n, generator, model.device)
    results: list[list[TokenSequence]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), per_batch):
            batch = by_length[start : start + per_batch]
            rows = _decode(
                model,
                [prompts[i] for i in batch],
                n=n,
                uniforms=uniforms[:, batch].flatten(1),
                temperature=temperature,
                top_p=top_p,
                ends=ends,
                pad_token_id=pad_token_id,
                on_tokens=on_tokens,
            )
            for k, i in enumerate(batch):
                results[i] = rows[k * n : (k + 1) * n]
            if progress is not None:
                progress((start + len(batch)) * n, len(prompts) * n)
    finally:
        model.train(was_training)
    return results


def gpu_room(device: torch.device) -> float | None:
    """Bytes that rows may fill; None where the device is no GPU. It depends on what this process
    holds alone, so that a run that is resumed cuts its batches as before."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return _GPU_SHARE * total - torch.cuda.memory_allocated(device)


def cache_bytes(model: PreTrainedModel) -> int:
    """Of one token's keys and values."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def cache_of(output: Any, model: PreTrainedModel) -> Cache:
    """The keys and values that the model has kept.

    Raises:
        EngineError: it is of a kind that keeps none.
    """
    cache: Cache | None = getattr(output, "past_key_values", None)
    if cache is None:
        raise EngineError(
            f"{type(model).__name__} keeps no keys and values, which are needed here: use the "
            "engine vllm"
        )
    return cache


def draw(
    max_new_tokens: int,
    prompts: int,
    n: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """[max_new_tokens, P, n] in [0, 1): a number for every token that may be sampled.

    Drawn before anything is decoded: what a row gets does not depend on the rows beside it.
    """
    return torch.rand(max_new_tokens, prompts, n, generator=generator, device=device)


def _check(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], n: int, max_new_tokens: int
) -> None:
    if n < 1 or max_new_tokens < 1:
        raise ValueError(f"n={n} and max_new_tokens={max_new_tokens} must both be at least 1")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {i} has no tokens")
        if not leaves_room(prompt, positions_of(model.config)):
            raise ValueError(
                f"prompt {i} has {len(prompt)} tokens, which leaves no room for a reply in the "
                f"model's {positions_of(model.config)} positions: shorten the prompt"
            )


def _draw(
    logits: Tensor, uniform: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """The next token of each row [R] and its log-probability [R].

    By inversion of the cumulative distribution, so that a row needs one random number a token.

    Args:
        logits: [R, V].
        uniform: [R] in [0, 1), float64.

    Raises:
        EngineError: the logits are not finite.
    """
    logits = logits.float()
    if temperature > 0:
        logits = logits / temperature
    log_probs = logits.log_softmax(-1)
    if log_probs[:, 0].isnan().any():  # one number that is not finite makes its whole row NaN
        raise EngineError(
            "the model's logits are not finite: its weights are broken, or training diverged"
        )
    if temperature > 0:
        allowed = log_probs if top_p >= 1 else _nucleus(log_probs, top_p)
        # In whole numbers, whose sums do not depend on the order in which a device adds them.
        cumulative = (allowed.exp().double() * _UNITS).long().cumsum(-1)
        total = cumulative[:, -1]
        # Below the total, so that the token found has a probability above 0.
        point = torch.minimum((uniform * total).long(), total - 1)
        tokens = torch.searchsorted(cumulative, point[:, None], right=True)[:, 0]
    else:
        tokens = log_probs.argmax(-1)
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]


def _nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """`log_probs` with minus infinity outside the smallest set that holds `top_p` of the mass."""
    ordered, order = log_probs.sort(-1, descending=True)
    units = (ordered.exp().double() * _UNITS).long()
    # The most likely token is never outside.
    outside = units.cumsum(-1) - units >= top_p * _UNITS
    return log_probs.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


class _GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped
    """Keys and values of one layer in a buffer with room to spare, not copied at every token."""

    keys: Any
    values: Any

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.length = 0
        self.whole = False
        """Give out the whole buffers, with what is not filled yet, which then has to be masked."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[-2]
        if self.keys is None:
            self.is_initialized = True
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys, self.values = key_states, value_states
        else:
            if end > self.keys.shape[-2]:
                self.reserve(end)
            self.keys[..., self.length : end, :] = key_states
            self.values[..., self.length : end, :] = value_states
        self.length = end
        if self.whole:
            return self.keys, self.values
        return self.keys[..., :end, :], self.values[..., :end, :]

    def reserve(self, length: int) -> None:
        """Make buffers of `length` positions and some more."""
        self.keys = _with_room(self.keys[..., : self.length, :], length)
        self.values = _with_room(self.values[..., : self.length, :], length)

    def get_seq_length(self) -> int:
        return self.length


def _with_room(states: Tensor, length: int) -> Tensor:
    """A copy of [R, heads, L, size] whose third dimension has room for more than `length`."""
    rows, heads, filled, size = states.shape
    buffer = states.new_zeros(rows, heads, length + _GROWTH, size)
    buffer[..., :filled, :] = states
    return buffer


class _Context:
    """What the model sees: cached keys and values, masks and positions of the live rows."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self.model = model
        width = max(map(len, prompts))
        padded = [[pad] * (width - len(p)) + list(p) for p in prompts]
        self.ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(p) for p in prompts], device=model.device)
        self.is_padded = bool((lengths < width).any())
        self.seen = torch.arange(width, device=model.device) >= (width - lengths)[:, None]
        self.positions = lengths - 1  # of the last token, [R]
        self.cache: Cache = DynamicCache(config=model.config)
        # Models with windowed or recurrent layers make their own masks and keep their own caches.
        self.is_plain = all(type(layer) is DynamicLayer for layer in self.cache.layers)
        if self.is_plain:
            self.cache = Cache(layer_class_to_replicate=_GrowingLayer)
        self.is_fast = self.is_plain and suits(model)

    def prefill(self) -> Tensor:
        """Logits [P, V] after the last token of each prompt."""
        positions = (self.seen.cumsum(-1) - 1).clamp_min(0)
        mask: Tensor | None = self.seen
        if not self.is_padded:
            mask = None
        elif self.is_plain:
            width = self.ids.shape[1]
            square = torch.ones(width, width, dtype=torch.bool, device=self.ids.device)
            # Padding attends to itself: a query with nothing to attend to would give NaN.
            mask = (square.tril() & self.seen[:, None, :]) | square.triu().tril()
            mask = mask[:, None]
        return self._forward(self.ids, mask, positions)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after one more token [R] of each row."""
        last = positions_of(self.model.config) - 1
        self.positions = (self.positions + 1).clamp_max(last)  # those of ended rows stay
        positions = self.positions[:, None]
        if self.is_fast:
            return self._fast_step(tokens, positions)
        mask = None
        if self.is_padded:
            self.seen = torch.cat([self.seen, self.seen.new_ones(len(self.seen), 1)], dim=1)
            mask = self.seen[:, None, None, :] if self.is_plain else self.seen
        return self._forward(tokens[:, None], mask, positions)

    def _fast_step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        end = self.cache.get_seq_length() + 1
        if end > self.seen.shape[1]:
            # As wide as the buffers will be, which grow by the same rule.
            room = self.seen.new_zeros(len(self.seen), end + _GROWTH - self.seen.shape[1])
            self.seen = torch.cat([self.seen, room], dim=1)
            for layer in self.cache.layers:
                layer.whole = True
                layer.reserve(end)
        self.seen[:, end - 1] = True
        bias = torch.zeros(self.seen.shape).masked_fill_(~self.seen, -torch.inf)
        with decode_attention(self.model):
            return self._forward(tokens[:, None], bias[:, None, None], positions)

    def repeat(self, n: int) -> None:
        """Give every prompt `n` rows."""
        if n > 1:
            rows = torch.arange(len(self.seen), device=self.seen.device).repeat_interleave(n)
            self.select(rows)

    def select(self, rows: Tensor) -> None:
        """Keep the rows with these indices."""
        # Unlike batch_select_indices, it also knows the states of linear attention.
        self.cache.reorder_cache(rows)
        self.seen, self.positions = self.seen[rows], self.positions[rows]

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache_of(output, self.model)
        logits: Tensor = output.logits
        return logits[:, -1]


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    n: int,
    uniforms: Tensor,
    temperature: float,
    top_p: float,
    ends: Tensor,
    pad_token_id: int,
    on_tokens: Callable[[list[int]], None] | None,
) -> list[TokenSequence]:
    """The rows of one batch, `n` in a row for each prompt; `uniforms` is [max_new_tokens, R]."""
    context = _Context(model, prompts, pad_token_id)
    logits = context.prefill()
    context.repeat(n)
    logits = logits.repeat_interleave(n, dim=0)

    max_new_tokens, total = uniforms.shape
    device = logits.device
    tokens = torch.full((max_new_tokens, total), pad_token_id, device=device)
    logprobs = torch.zeros(max_new_tokens, total, device=device)
    room = torch.tensor([positions_of(model.config) - len(p) for p in prompts], device=device)
    lengths = room.clamp(max=max_new_tokens).repeat_interleave(n)
    ended = torch.zeros(total, dtype=torch.bool, device=device)
    stopped = torch.zeros(total, dtype=torch.bool, device=device)
    rows = torch.arange(total, device=device)  # which row of the output each live row is
    for step in range(max_new_tokens):
        drawn, drawn_logprobs = _draw(logits, uniforms[step, rows], temperature, top_p)
        tokens[step, rows] = drawn
        logprobs[step, rows] = drawn_logprobs
        if on_tokens is not None:
            on_tokens(drawn[~ended[rows]].tolist())
        newly = torch.isin(drawn, ends) & ~ended[rows]
        lengths[rows[newly]] = step + 1
        stopped[rows[newly]] = True
        ended[rows] |= lengths[rows] == step + 1
        live = ~ended[rows]
        alive = int(live.sum())
        if alive == 0 or step + 1 == max_new_tokens:
            break
        if alive < _COMPACT_BELOW * len(rows):
            keep = live.nonzero()[:, 0]
            context.select(keep)
            rows, drawn = rows[keep], drawn[keep]
        logits = context.step(drawn)

    return [
        TokenSequence(tuple(ids[:length]), tuple(values[:length]), "stop" if stop else "length")
        for ids, values, length, stop in zip(
            tokens.T.tolist(), logprobs.T.tolist(), lengths.tolist(), stopped.tolist(), strict=True
        )
    ]
