"""Notices when a policy has broken down. It stops nothing and hides nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

WINDOW_STEPS = 10
LEAST_ENTROPY_NATS = 1e-3
WATCHED = ("objective/verified", "completions/clipped_ratio", "entropy")

Step = Mapping[str, float]


@dataclass
class CollapseGuard:
    """Compares the last steps with the first ones."""

    first: list[Step] = field(default_factory=list)
    last: list[Step] = field(default_factory=list)
    steps: int = 0
    collapsed_steps: int = 0
    """Steps after which the policy looked collapsed."""
    reason: str | None = None
    """Why it looks collapsed now."""

    def watch(self, metrics: Step) -> None:
        """Take in the metrics of one more step, and warn when a collapse begins."""
        seen = {name: metrics[name] for name in WATCHED if name in metrics}
        self.steps += 1
        if len(self.first) < WINDOW_STEPS:
            self.first.append(seen)
        else:
            self.last = [*self.last, seen][-WINDOW_STEPS:]
        before, self.reason = self.reason, collapse_reason(self.first, self.last)
        self.collapsed_steps += self.reason is not None
        if self.reason is not None and before is None:
            logger.warning(
                "step %d: the policy may have collapsed: %s. A lower learning_rate or a higher "
                "beta keeps it closer to the reference",
                self.steps,
                self.reason,
            )

    def state(self) -> dict[str, Any]:
        """What `CollapseGuard(**state)` goes on from."""
        return asdict(self)


def collapse_reason(first: Sequence[Step], last: Sequence[Step]) -> str | None:
    """Why the last steps look like a collapse next to the first; None if they do not."""
    if len(last) < WINDOW_STEPS:
        return None
    checked = [[s for s in steps if "objective/verified" in s] for steps in (first, last)]
    if all(checked):
        before, now = (_mean(steps, "objective/verified") for steps in checked)
        if now < 0.5 * before:
            return f"verified completions fell from {before:.1%} to {now:.1%}"
    ended = tuple(1.0 - _mean(steps, "completions/clipped_ratio") for steps in (first, last))
    if ended[1] < 0.5 * ended[0]:
        return f"completions with an end token fell from {ended[0]:.1%} to {ended[1]:.1%}"
    entropies = [step for step in last if "entropy" in step]
    if entropies and _mean(entropies, "entropy") < LEAST_ENTROPY_NATS:
        return f"the entropy fell below {LEAST_ENTROPY_NATS} nats a token"
    return None


def _mean(steps: Sequence[Step], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)
