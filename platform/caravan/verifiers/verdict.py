"""What a verifier says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from caravan.errors import CaravanError


class VerifierError(CaravanError):
    """The verifier could not decide: the machine failed, not the completion.

    Never to be read as a wrong answer: retry, or leave the completion out.
    """


@dataclass(frozen=True, slots=True)
class Verdict:
    correct: bool
    score: float
    """In [0, 1]; the share satisfied where a verifier checks several things."""
    extracted: str | None = None
    """The part of the completion that was compared, for people to look at."""


Verifier = Callable[[str, Any], Verdict]
"""`(completion, ground_truth) -> Verdict`."""

WRONG = Verdict(False, 0.0)
