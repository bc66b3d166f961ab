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
from collections.abc import Iterable, Sequence

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
        self._numbers: dict[str, int] = {}
        """Of the words of the prompts: a window with any other word need not be looked up."""
        self._places: dict[int, dict[tuple[int, ...], list[tuple[int, int]]]] = {}
        """Window length to window to (prompt, start). Lengths below `ngram_size` hold the
        prompts of exactly that length."""
        for number, tokens in enumerate(self.prompts):
            width = min(ngram_size, len(tokens))
            if not width:
                continue
            ids = [self._numbers.setdefault(token, len(self._numbers)) for token in tokens]
            windows = self._places.setdefault(width, {})
            for start in range(len(ids) - width + 1):
                windows.setdefault(tuple(ids[start : start + width]), []).append((number, start))

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
            for run in self._known_runs(tokenize(text)):
                for width, windows in self._places.items():
                    for start in range(len(run) - width + 1):
                        for prompt, at in windows.get(tuple(run[start : start + width]), ()):
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

    def _known_runs(self, tokens: Sequence[str]) -> list[list[int]]:
        """The tokens as numbers, cut where a word occurs in no prompt."""
        runs: list[list[int]] = [[]]
        for token in tokens:
            number = self._numbers.get(token)
            if number is not None:
                runs[-1].append(number)
            elif runs[-1]:
                runs.append([])
        return runs
