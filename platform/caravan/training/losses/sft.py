"""The loss of supervised fine-tuning.

Shapes: S supervised tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from caravan.training.output_head import linear_cross_entropy


def cross_entropy(hidden: Tensor, head: Tensor, tokens: Tensor) -> Tensor:
    """Summed token cross entropy, [] in nats, of `tokens` [S] int64 after the states `hidden`
    [S, H], under the output head [V, H].

    A sum, because a mean over one pass would weigh the tokens of short passes more: the caller
    divides by the supervised tokens of the whole optimiser step, over all passes and ranks
    (Lambert et al. 2024, arXiv:2411.15124, section 4.3.2).
    """
    return linear_cross_entropy(hidden, head, tokens)
