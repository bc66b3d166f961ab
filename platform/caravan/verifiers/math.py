r"""Competition mathematics: an expression, compared by what it means.

    completion:   "... so the sum is $\boxed{\frac{1}{2}}$."
    ground truth: "0.5"

"Flex" extraction as in Tülu 3 (section 7.2): the last boxed expression and the closing phrase of
Minerva ("Final Answer: The final answer is $x$. I hope it is correct.") are candidates; without
either, the text between the last two dollar signs; without that, the whole completion. Any
candidate that is equivalent counts. Equivalence: equal after the normalisation of the MATH release
(Hendrycks et al. 2021), or equal according to the `math-verify` library within a time limit.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

from caravan.errors import require
from caravan.verifiers.verdict import Verdict, VerifierError

TIMEOUT_SECONDS = 5.0
"""CPU time for parsing and comparing one candidate."""
MAX_CANDIDATE_CHARACTERS = 2000
"""Longer candidates are compared as text only."""

_MINERVA = re.compile(
    r"final answer is:?\s*(.+?)(?:\.?\s*I hope it is correct|\.?\s*$)", re.I | re.M
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\b")


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete \boxed{...} or \boxed x."""
    for match in reversed(list(_BOXED.finditer(text))):
        content = _braced(text, match.end())
        if content is not None:
            return content
    return None


def _braced(text: str, start: int) -> str | None:
    while start < len(text) and text[start] == " ":
        start += 1
    if text[start : start + 1] != "{":
        word = re.match(r"[^\s$]+", text[start:])
        return word.group() if word else None
    depth = 0
    for position in range(start, len(text)):
        character = text[position]
        if character == "\\":
            continue
        if text[position - 1] == "\\" and character in "{}":
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position].strip()
    return None


def candidates(completion: str) -> tuple[str, ...]:
    """What may be the answer, most trusted first."""
    found = []
    boxed = last_boxed(completion)
    if boxed is not None:
        found.append(boxed)
    minerva = _MINERVA.findall(completion)
    if minerva:
        found.append(minerva[-1].strip().strip("$").strip())
    if not found:
        parts = completion.split("$")
        if len(parts) > 2:
            found.append(parts[-2].strip())
    return tuple(dict.fromkeys(c for c in found if c)) or (completion.strip(),)


# --- equality as text ---------------------------------------------------------------------------

_UNIT = re.compile(r"\\text\{ .*\}$|\\text\{\s*(?:cm|m|inches|units|square units|degrees)\s*\}.*$")


@lru_cache(maxsize=65536)
def normalise(expression: str) -> str:
    """Spelling variants that do not change the meaning, removed."""
    text = expression.strip().strip("$").rstrip(".").replace("\n", "")
    text = re.sub(r"\\[!,:; ]|\\quad|\\left|\\right|~", "", text)
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("cfrac", "frac")
    text = re.sub(r"\^\{?\\circ\}?|\\degree|\\\$|\\?%", "", text)
    text = _UNIT.sub("", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"^[a-zA-Z]\s*=\s*", "", text.strip())
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\sqrt\s*([0-9a-zA-Z])", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<![0-9])\.([0-9])", r"0.\1", text)
    text = re.sub(r"(\.[0-9]*?)0+(?![0-9])", r"\1", text)
    text = re.sub(r"\.(?![0-9])", "", text)
    if slash := re.fullmatch(r"(-?[0-9]+)/([0-9]+)", text.strip()):
        text = rf"\frac{{{slash[1]}}}{{{slash[2]}}}"
    return "".join(text.split())


# --- equality as mathematics --------------------------------------------------------------------


def equivalent(candidate: str, expected: str) -> bool:
    """Whether two expressions mean the same, by spelling or by symbolic comparison."""
    if normalise(candidate) == normalise(expected):
        return True
    if not candidate or max(len(candidate), len(expected)) > MAX_CANDIDATE_CHARACTERS:
        return False
    if threading.current_thread() is threading.main_thread():
        return _symbolically_equal(candidate, expected)
    # the time limit is a signal, which only a main thread receives
    try:
        return _worker().submit(_symbolically_equal, candidate, expected).result(timeout=120)
    except Exception as error:
        _worker.cache_clear()
        raise VerifierError(f"math: the comparing process failed: {error!r}") from error


@cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


@lru_cache(maxsize=65536)
def _symbolically_equal(candidate: str, expected: str) -> bool:
    library = require("math_verify", extra="train", feature="the math verifier")
    # it warns, each time, that limiting the time is left to its caller
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    config = [library.LatexExtractionConfig(), library.ExprExtractionConfig()]
    try:
        with _cpu_limit(TIMEOUT_SECONDS):
            wanted, given = (
                library.parse(f"${text}$", extraction_config=config, parsing_timeout=None)
                for text in (expected, candidate)
            )
            if not wanted or not given:
                return False
            return bool(library.verify(wanted, given, timeout_seconds=None))
    except _OutOfTimeError:
        return False


class _OutOfTimeError(BaseException):
    """Not an Exception, so that no library under it takes it for its own."""


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Limits CPU time and not the clock: a busy machine must not change a verdict."""

    def stop(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def verify(completion: str, ground_truth: Any) -> Verdict:
    """Whether any candidate is equivalent to the ground truth."""
    expected = str(ground_truth)
    found = candidates(completion)
    for candidate in found:
        if equivalent(candidate, expected):
            return Verdict(True, 1.0, candidate)
    return Verdict(False, 0.0, found[0])
