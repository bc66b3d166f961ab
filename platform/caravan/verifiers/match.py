"""Answers compared as text: exactly, by containment, by overlap, or by the letter of an option."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from caravan.errors import DataError
from caravan.verifiers.verdict import WRONG, Verdict

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces (SQuAD)."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _accepted(name: str, ground_truth: Any) -> list[str]:
    """The ground truth as a list: a string, or several that are all right."""
    if isinstance(ground_truth, str):
        return [ground_truth]
    if isinstance(ground_truth, Sequence) and ground_truth:
        return [str(answer) for answer in ground_truth]
    if isinstance(ground_truth, int | float):
        return [str(ground_truth)]
    raise DataError(f"{name}: ground truth {ground_truth!r} is neither a text nor a list of texts")


def exact_match(completion: str, ground_truth: Any) -> Verdict:
    """Whether the completion is one of the accepted answers, in its form as well.

    Case, spacing within a line and a closing full stop do not count; every other mark does, so
    `a,b` is not `a, b` and a bullet list is not a numbered one.
    """
    said = _in_form(completion)
    correct = any(_in_form(answer) == said for answer in _accepted("exact_match", ground_truth))
    return Verdict(correct, float(correct), completion.strip())


def _in_form(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.strip().lower().splitlines())
    return "\n".join(lines).removesuffix(".")


def normalised_match(completion: str, ground_truth: Any) -> Verdict:
    """Whether the completion says one of the accepted answers, whatever its form."""
    said = normalise(completion)
    accepted = _accepted("normalised_match", ground_truth)
    correct = bool(said) and any(normalise(answer) == said for answer in accepted)
    return Verdict(correct, float(correct), completion.strip())


def contains(completion: str, ground_truth: Any) -> Verdict:
    """Whether an accepted answer stands in the completion, as whole words."""
    said = f" {normalise(completion)} "
    for answer in _accepted("contains", ground_truth):
        wanted = normalise(answer)
        if wanted and f" {wanted} " in said:
            return Verdict(True, 1.0, answer)
    return WRONG


def f1(completion: str, ground_truth: Any) -> Verdict:
    """Best token F1 with an accepted answer (SQuAD, DROP); correct when it is 1."""
    said = normalise(completion).split()
    best = max(_f1(said, normalise(a).split()) for a in _accepted("f1", ground_truth))
    return Verdict(best == 1.0, best, completion.strip())


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


# --- options ------------------------------------------------------------------------------------

_CHOICE_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i:therefore,? the (?:correct )?(?:answer|option|choice) is:?)\s*\**\(?([A-Z])\b",
        r"(?i:answer is:?)\s*\**\(?([A-Z])\b",
        r"(?i:answer:)\s*\**\(?([A-Z])\b",
        r"\(?\b([A-Z])\)? (?i:is (?:the )?(?:correct|right))",
        r"\(([A-Z])\)",
        r"(?<![\w'])([B-HJ-Z])(?![\w'])",
        r"(?<![\w'])([A-Z])(?![\w'])",
    )
)
"""In order of trust: a closing phrase, looser phrases, a letter in parentheses, a lone letter
(A and I, which are also words, last)."""


def extract_choice(completion: str) -> str | None:
    """The letter of the option a completion settles on; of several matches the last."""
    for pattern in _CHOICE_PATTERNS:
        found = pattern.findall(completion)
        if found:
            return str(found[-1])
    return None


def choice(completion: str, ground_truth: Any) -> Verdict:
    """Whether the completion settles on the option with the letter `ground_truth`."""
    letter = extract_choice(completion)
    correct = letter is not None and letter == str(ground_truth).strip("() ")
    return Verdict(correct, float(correct), letter)


_BBH_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"so the (?:final )?answer is:?\s*(.+)",
        r"(?:final |correct )?answer is:?\s*(.+)",
        r"(?:^|\n)\s*answer:\s*(.+)",
    )
)


def bbh(completion: str, ground_truth: Any) -> Verdict:
    """BIG-Bench Hard: what follows the closing phrase, else the last line, equals the target.

    A target that is an option, `(B)`, is also met by its letter.
    """
    target = str(ground_truth).strip()
    answer = _bbh_answer(completion)
    if answer is None:
        return WRONG
    if re.fullmatch(r"\([A-Z]\)", target):
        letter = re.search(r"\(?\b([A-Z])\b\)?", answer)
        correct = letter is not None and letter.group(1) == target[1]
    else:
        correct = _plain(answer) == _plain(target)
    return Verdict(correct, float(correct), answer)


def _bbh_answer(completion: str) -> str | None:
    for pattern in _BBH_PATTERNS:
        found = pattern.findall(completion)
        if found:
            return str(found[-1]).strip()
    lines = completion.strip().splitlines()
    return lines[-1].strip() if lines else None


def _plain(text: str) -> str:
    """For comparing: lower case, single spaces, without a closing full stop, quotes or marks."""
    return " ".join(text.lower().replace("*", " ").replace("$", " ").strip(" .\"'`").split())
