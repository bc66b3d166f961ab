"""Where two texts differ, word by word."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import NamedTuple

MAX_WORDS = 3000
"""Texts with more words than this are shown without marks: the comparison takes quadratic time."""


class Piece(NamedTuple):
    text: str
    differs: bool


def word_diff(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; what the other does not have is marked. Joined, they are the texts."""
    a, b = _words(left), _words(right)
    if max(len(a), len(b)) > MAX_WORDS:
        return [Piece(left, False)], [Piece(right, False)]
    pieces: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, a_from, a_to, b_from, b_to in SequenceMatcher(None, a, b, False).get_opcodes():
        for side, words in ((0, a[a_from:a_to]), (1, b[b_from:b_to])):
            if words:
                pieces[side].append(Piece("".join(words), tag != "equal"))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)
