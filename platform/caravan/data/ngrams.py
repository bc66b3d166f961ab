"""Overlap of training text with evaluation prompts, by n-grams.

Rule of Tülu 3 (arXiv:2411.15124, section 3.2): a token of an evaluation prompt is covered by a
training row when it lies inside an n-gram that also occurs in that row. The index holds every
n-gram of every evaluation prompt and finds all of them: nothing is sampled and no hit is cut off.

    index = NgramIndex(["which planet has the most known moons today"], ngram_size=8)
    index.coverages(["Tell me: Which planet has the most known moons today?"])   # {0: 1.0}

Departures from the released implementation (which asks a search engine): both sides are tokenised
alike, and a prompt shorter than one n-gram matches where it occurs as a whole, instead of never.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# Lower case, split at white space, full stop, comma, question and exclamation mark, colon,
# semicolon, parentheses, double quote, hyphen and backslash; operators stay tokens.
_TOKEN = re.compile(r'[^\s.,?!:;()"\-\\]+')


def tokenize(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


class NgramIndex:
    """All n-grams of the evaluation prompts, by position."""

    def __init__(self, prompts: Iterable[str], ngram_size: int = 8) -> None:
        self.ngram_size = ngram_size
        self.prompts = [tokenize(prompt) for prompt in prompts]
        self._windows: dict[int, _Windows] = {}
        """By their length. Lengths below `ngram_size` hold the prompts of exactly that length."""
        for number, tokens in enumerate(self.prompts):
            if width := min(ngram_size, len(tokens)):
                self._windows.setdefault(width, _Windows(width)).add(number, tokens)

    @property
    def short(self) -> int:
        """Prompts with fewer tokens than an n-gram, matched only as a whole."""
        return sum(0 < len(tokens) < self.ngram_size for tokens in self.prompts)

    @property
    def empty(self) -> int:
        """Prompts without any token, which nothing can match."""
        return sum(not tokens for tokens in self.prompts)

    def covered(self, texts: Sequence[str]) -> dict[int, set[int]]:
        """Covered token positions of each prompt that shares an n-gram with one row's texts.

        The texts are the turns of one row; no n-gram spans two of them.
        """
        found: dict[int, set[int]] = {}
        for text in texts:
            tokens = tokenize(text)
            for width, windows in self._windows.items():
                for prompt, at in windows.shared_with(tokens):
                    found.setdefault(prompt, set()).update(range(at, at + width))
        return found

    def coverages(self, texts: Sequence[str]) -> dict[int, float]:
        """Share of each prompt's tokens that one row covers; prompts with none are left out."""
        return {
            prompt: len(positions) / len(self.prompts[prompt])
            for prompt, positions in self.covered(texts).items()
        }

    def matched_text(self, prompt: int, positions: Iterable[int]) -> str:
        """The covered tokens of a prompt, with gaps marked."""
        words: list[str] = []
        previous = -1
        for position in sorted(positions):
            if position != previous + 1:
                words.append("…")
            words.append(self.prompts[prompt][position])
            previous = position
        if previous + 1 < len(self.prompts[prompt]):
            words.append("…")
        return " ".join(words)


class _Windows:
    """Windows of one length, and where they stand in the prompts.

    Few windows of a text are in any prompt, and to find that out a look at a part of them is
    enough: whatever its place, a window holds a whole anchor, an n-gram of half its length, at one
    of the text's places `stride` apart. Where no prompt has that anchor, no window is looked up.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._anchor = (width + 1) // 2
        self._stride = width - self._anchor + 1
        self._anchors: set[tuple[str, ...]] = set()
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        """(prompt, start) of each window."""

    def add(self, prompt: int, tokens: Sequence[str]) -> None:
        self._anchors.update(_ngrams(tokens, self._anchor))
        for start, window in enumerate(_ngrams(tokens, self._width)):
            self._places.setdefault(window, []).append((prompt, start))

    def shared_with(self, tokens: Sequence[str]) -> Iterator[tuple[int, int]]:
        """(prompt, start) of every window of a text."""
        width, places = self._width, self._places
        for number, anchor in enumerate(_ngrams(tokens, self._anchor, self._stride)):
            if anchor in self._anchors:
                at = number * self._stride
                first = max(0, at + self._anchor - width)
                for start in range(first, min(at, len(tokens) - width) + 1):
                    yield from places.get(tuple(tokens[start : start + width]), ())


def _ngrams(tokens: Sequence[str], size: int, stride: int = 1) -> Iterator[tuple[str, ...]]:
    """The n-grams that begin at every `stride`-th token."""
    return zip(*(tokens[k::stride] for k in range(size)), strict=False)
