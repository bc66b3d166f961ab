"""What every preference loss is given, gives back, and is.

Shapes: B preference pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from pydantic import Field

from caravan.config import Config

if TYPE_CHECKING:
    from torch import Tensor

Smoothing = Annotated[float, Field(ge=0.0, lt=0.5)]
"""The share of pairs that is taken to be labelled the wrong way round."""


class PairLogProbs(NamedTuple):
    """Of the completions of B pairs, prompts left out, end tokens counted."""

    policy_chosen: Tensor
    """[B] log-probability of the whole completion, in nats."""
    policy_rejected: Tensor
    reference_chosen: Tensor
    """[B], without gradient; empty for a loss that needs no reference policy."""
    reference_rejected: Tensor
    chosen_tokens: Tensor
    """[B] length of the completion."""
    rejected_tokens: Tensor
    divergence: Tensor | None = None
    """[] estimate of KL(policy || reference), without gradient; for a loss that needs it."""

    @property
    def chosen_ratio(self) -> Tensor:
        """[B] log-ratio of policy and reference, of the whole chosen completion."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        return self.policy_rejected - self.reference_rejected


class PairLoss(NamedTuple):
    losses: Tensor
    """[B]."""
    chosen_rewards: Tensor
    """[B] implicit reward, detached."""
    rejected_rewards: Tensor
    others: Mapping[str, Tensor] = {}
    """[B] each: more numbers to report, detached, by the names that TRL gives them."""


class PreferenceLoss(Config):
    """A loss on preference pairs: frozen options, and the formula as its call."""

    needs_reference: ClassVar[bool] = True
    """Whether it looks at the log-probabilities of the reference policy."""
    needs_divergence: ClassVar[bool] = False
    """Whether it looks at `PairLogProbs.divergence`."""

    def __call__(self, pairs: PairLogProbs) -> PairLoss:
        raise NotImplementedError

    def doubts(self) -> Iterator[str]:
        """What is allowed and was probably not meant: `field: what, and what to do`."""
        return iter(())


def log_sigmoid(values: Tensor) -> Tensor:
    """log(sigmoid(values)), exact where `values` is far from 0."""
    import torch.nn.functional as F  # here, so that a recipe is read without it

    return F.logsigmoid(values)


def smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    """[B] -log sigmoid(margin) of labels of which a share is wrong: conservative DPO.

    (1 - e) * -log sigmoid(margin) + e * -log sigmoid(-margin), e the label smoothing (Mitchell
    2023, "A note on DPO with noisy preferences and relationship to IPO", eq. 4).

    Args:
        margins: [B].
    """
    losses = -log_sigmoid(margins)
    if label_smoothing == 0.0:
        return losses
    return (1 - label_smoothing) * losses - label_smoothing * log_sigmoid(-margins)
