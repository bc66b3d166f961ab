"""What most post-training code does about leaks, in plain Python: a dictionary of the evaluation's
n-grams, and every n-gram of a training row looked up in it.

The rule is that of open-instruct (`decontamination/search.py`, `ngram_match`, which asks an
Elasticsearch index with its analyser instead of a dictionary): a row is contaminated when it covers
more than a share of the tokens of one question with n-grams that both contain.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

_SEPARATORS = re.compile(r'[\s.,?!:;()"\-\\]+')


class PlainNgrams:
    def __init__(self, questions: Iterable[str], size: int) -> None:
        self._size = size
        self._lengths: list[int] = []
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, question in enumerate(questions):
            words = _words(question)
            self._lengths.append(len(words))
            for start in range(len(words) - size + 1):
                ngram = " ".join(words[start : start + size])
                self._places[ngram].append((number, start))

    def contaminated(self, texts: Sequence[str], max_coverage: float) -> bool:
        covered: dict[int, set[int]] = defaultdict(set)
        for text in texts:
            words = _words(text)
            for i in range(len(words) - self._size + 1):
                for number, start in self._places.get(" ".join(words[i : i + self._size]), ()):
                    covered[number].update(range(start, start + self._size))
        return any(len(found) / self._lengths[n] > max_coverage for n, found in covered.items())


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(text.lower()) if word]
