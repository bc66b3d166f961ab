"""One question of the pocket world, and the styles it can be answered in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Style = Literal["careful", "plain", "terse", "sloppy"]
"""Careful: right, explained, polite. Plain: right, explained. Terse: the bare answer, sometimes
wrong. Sloppy: often wrong, and ignores what it was asked to keep to."""


@dataclass(frozen=True)
class Item:
    """A question with everything its author knows about it."""

    skill: str
    prompt: str
    verifier: str | None
    ground_truth: Any
    """What the verifier compares with."""
    fields: dict[str, Any]
    """What the question was built from, for those who answer or judge it."""
