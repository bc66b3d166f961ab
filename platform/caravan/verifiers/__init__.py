"""Verifiers: is this completion right?

    >>> verify("gsm8k", "3 + 4 = 7, so she has $7.00 left.", "7")
    Verdict(correct=True, score=1.0, extracted='7.00')

Every verifier is a function `(completion, ground_truth) -> Verdict`, pure and deterministic. The
ones that reinforcement learning calls in its inner loop (gsm8k, ifeval, exact_match, contains)
import nothing heavy; `math` imports math-verify, and the language constraints of `ifeval` import
langdetect, on first use. A recipe may name functions of its own: `caravan.verifiers.own`.
"""

from __future__ import annotations

from typing import Any

from caravan.errors import DataError
from caravan.verifiers import code, expression, gsm8k, ifeval, match, math
from caravan.verifiers.own import OwnVerifier, own_verifiers
from caravan.verifiers.verdict import Verdict, Verifier, VerifierError

VERIFIERS: dict[str, Verifier] = {
    "gsm8k": gsm8k.verify,
    "math": math.verify,
    "ifeval": ifeval.verify,
    "ifeval_loose": ifeval.verify_loose,
    "exact_match": match.exact_match,
    "normalised_match": match.normalised_match,
    "contains": match.contains,
    "f1": match.f1,
    "choice": match.choice,
    "bbh": match.bbh,
    "expression": expression.verify,
    "code": code.verify,
}


def verify(name: str, completion: str, ground_truth: Any) -> Verdict:
    """Run the verifier `name`.

    Raises:
        DataError: there is no such verifier, or the ground truth is not what it expects.
        VerifierError: the verifier itself failed; nothing is known about the completion.
    """
    verifier = VERIFIERS.get(name)
    if verifier is None:
        raise DataError(f"unknown verifier {name!r}; there are {', '.join(sorted(VERIFIERS))}")
    return verifier(completion, ground_truth)


def waits(verifier: Verifier) -> bool:
    """Whether it waits for another process, so that threads help."""
    return verifier is code.verify or isinstance(verifier, OwnVerifier)


__all__ = [
    "VERIFIERS",
    "OwnVerifier",
    "Verdict",
    "Verifier",
    "VerifierError",
    "own_verifiers",
    "verify",
    "waits",
]
