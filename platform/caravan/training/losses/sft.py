"""The loss of supervised fine-tuning.

Shapes: S supervised tokens.
"""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logprobs: Tensor) -> Tensor:
    """Summed token cross entropy, [] in nats, of the log-probabilities [S] of the right tokens.

    A sum, because a mean over one pass would weigh the tokens of short passes more: the caller
    divides by the supervised tokens of the whole optimiser step, over all passes and ranks
    (Lambert et al. 2024, arXiv:2411.15124, section 4.3.2).
    """
    return -logprobs.sum()
