"""python -m tests.benchmarks.gpu_attention [WORK]: kernels for causal attention of packed rows.

One layer of a model of `gpu_training`, one pass of its rows. The kernels: the one that training
takes, PyTorch's (FlashAttention 2); cuDNN's, as PyTorch carries it; and FlashAttention 4, where the
package flash-attn-4 is installed (a wheel, for Hopper and later; PyTorch 2.11 and later take it).

Of each: milliseconds of the forward pass and of both passes, medians of 20 with the least and the
most; TFLOP/s of both, counting 4 (forward) and 10 (backward) x heads x head size for each pair of
query and key that sees it; how far output and gradients are from float32's; and whether both passes
made twice give the same bytes, without which a resumed run would not end as an undisturbed one.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import torch
from tests.benchmarks import training_work as w
from torch import Tensor

from caravan.training.attention import causal_varlen

REPETITIONS = 20
Kernel = Callable[[Tensor, Tensor, Tensor, "Rows"], Tensor]


@dataclass(frozen=True)
class Rows:
    begins: Tensor
    """[R + 1] int32: where each row begins, and where the last one ends."""
    longest: int

    @classmethod
    def of_pass(cls, work: w.Work, device: torch.device) -> Rows:
        """As many of the work's rows as a pass takes."""
        lengths = w.lengths(work)
        lengths = lengths[: np.searchsorted(lengths.cumsum(), work.tokens_per_pass, "right")]
        begins = torch.tensor([0, *lengths.cumsum()], dtype=torch.int32, device=device)
        return cls(begins, int(lengths.max()))

    @property
    def lengths(self) -> list[int]:
        return self.begins.diff().tolist()


def pytorch(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    begins, longest = rows.begins, rows.longest
    return causal_varlen(query, key, value, begins, begins, longest, longest, None)


def cudnn(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    return cast(Tensor, cast(Any, _Cudnn).apply(query, key, value, rows))


class _Cudnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
        ends = (rows.begins, rows.begins, rows.longest, rows.longest)
        found = torch.ops.aten._cudnn_attention_forward(
            query, key, value, None, *ends, True, 0.0, True, False
        )
        ctx.save_for_backward(query, key, value, found[0], found[1], found[6], found[7])
        ctx.ends = ends
        return cast(Tensor, found[0])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out, normaliser, seed, offset = ctx.saved_tensors
        no_bias = torch.empty(0, dtype=query.dtype, device=query.device)
        return *torch.ops.aten._cudnn_attention_backward(
            upstream[0].contiguous(), query, key, value, out, normaliser, seed, offset, no_bias,
            *ctx.ends, 0.0, True,
        ), None  # fmt: skip


def flash_attention_4(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    from torch.nn.attention import activate_flash_attention_impl, current_flash_attention_impl

    if current_flash_attention_impl() != "FA4":  # from here on, for all that PyTorch is asked
        activate_flash_attention_impl("FA4")
    return pytorch(query, key, value, rows)


def plain(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    """Row by row, in the precision of its input."""
    parts = zip(*(states.split(rows.lengths) for states in (query, key, value)), strict=True)
    return torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                *(states.transpose(0, 1)[None] for states in part), is_causal=True, enable_gqa=True
            )[0].transpose(0, 1)
            for part in parts
        ]
    )


KERNELS: dict[str, Kernel] = {"PyTorch": pytorch, "cuDNN": cudnn}
if find_spec("flash_attn") and find_spec("flash_attn.cute"):
    KERNELS["FlashAttention 4"] = flash_attention_4  # the last, as it takes PyTorch's place


def main(name: str = "1B") -> None:
    torch.use_deterministic_algorithms(True)
    work, device = w.WORK[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = Rows.of_pass(work, device)
    states = inputs(work, sum(rows.lengths), device)
    exact = both_passes(plain, [s.float() for s in states], rows)
    print("| kernel | forward, ms | both passes, ms | TFLOP/s | off by | same bytes |")
    print("|---|---|---|---|---|---|")
    for title, kernel in KERNELS.items() if device.type == "cuda" else [("plain", plain)]:
        try:
            print(f"| {title} | {measured(kernel, states, rows, exact)} |", flush=True)
        except Exception as error:  # a kernel that does not take this shape is a result
            print(f"| {title} | {type(error).__name__}: {' '.join(str(error).split())} |")


def inputs(work: w.Work, tokens: int, device: torch.device) -> list[Tensor]:
    """Queries, keys, values and the gradient of what attention gives, [N, heads, D] bfloat16."""
    heads = work.hidden // work.head_size
    key_heads = work.key_heads or heads
    torch.manual_seed(0)
    return [
        torch.randn(tokens, n, work.head_size, device=device).bfloat16()
        for n in (heads, key_heads, key_heads, heads)
    ]


def measured(kernel: Kernel, states: list[Tensor], rows: Rows, exact: list[Tensor]) -> str:
    found = both_passes(kernel, states, rows)
    off = max(float((f.float() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True))
    again = both_passes(kernel, states, rows)
    same = all(torch.equal(f, a) for f, a in zip(found, again, strict=True))
    forward = [seconds(lambda: kernel(*states[:3], rows)) for _ in range(REPETITIONS)]
    both = [seconds(lambda: both_passes(kernel, states, rows)) for _ in range(REPETITIONS)]
    rate = flops(states[0], rows) / statistics.median(both) / 1e12
    return f"{spread(forward)} | {spread(both)} | {rate:.1f} | {off:.2%} | {same}"


def both_passes(kernel: Kernel, states: list[Tensor], rows: Rows) -> list[Tensor]:
    """What attention gives, and the gradients of queries, keys and values."""
    leaves = [state.detach().requires_grad_() for state in states[:3]]
    attended = kernel(*leaves, rows)
    return [attended.detach(), *torch.autograd.grad(attended, leaves, states[3])]


def flops(query: Tensor, rows: Rows) -> float:
    pairs = sum(length * (length + 1) / 2 for length in rows.lengths)
    return 14 * query.shape[1] * query.shape[2] * pairs


def seconds(call: Callable[[], object]) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def spread(taken: list[float]) -> str:
    low, middle, high = (1e3 * f(taken) for f in (min, statistics.median, max))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main(*sys.argv[1:])
