"""Word problems whose answer is one number.

Of GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the answer is the last number of the completion.

    completion:   "She sells 9 eggs, so she makes 9 * $2 = $18.00 a day."
    ground truth: "18", or GSM8K's own form "... #### 18"

Compared as numbers, unlike the string comparison of the Tülu 3 release (18.00 is 18), and with
the sign that release lost (-3 is not 3).
"""

from __future__ import annotations

import re
from collections import deque
from decimal import Decimal, InvalidOperation
from typing import Any

from caravan.errors import DataError
from caravan.verifiers.verdict import WRONG, Verdict

_NUMBER = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
_MINUS = "-\u2212"


def last_number(text: str) -> str | None:
    """The last number of `text`, with its sign and without thousands separators."""
    matches = deque(_NUMBER.finditer(text), maxlen=1)
    if not matches:
        return None
    last = matches[0]
    digits = last.group()
    start = last.start()
    whole, dot, fraction = digits.partition(".")
    whole = whole.rstrip(",")
    if "," in whole:
        if _GROUPED.fullmatch(whole):
            whole = whole.replace(",", "")
        else:  # a list such as 3,4,5
            comma = whole.rindex(",")
            start += comma + 1
            whole = whole[comma + 1 :]
    number = whole + dot + fraction
    return "-" + number if _is_negative(text, start) else number


def _is_negative(text: str, start: int) -> bool:
    """Whether a sign stands before `start`, and not a minus between two terms."""
    before = start - 1
    if before >= 0 and text[before] in "$\u20ac\u00a3":
        before -= 1
    if before < 0 or text[before] not in _MINUS:
        return False
    term = before - 1
    return term < 0 or not (text[term].isalnum() or text[term] in ")]}%_" + _MINUS)


def parse_number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def verify(completion: str, ground_truth: Any) -> Verdict:
    """Whether the last number equals the ground truth."""
    expected_text = str(ground_truth).rpartition("####")[2]
    expected_number = last_number(expected_text)
    if expected_number is None:
        raise DataError(f"gsm8k: ground truth {ground_truth!r} holds no number")
    extracted = last_number(completion)
    if extracted is None:
        return WRONG
    correct = parse_number(extracted) == parse_number(expected_number)
    return Verdict(correct, float(correct), extracted)
