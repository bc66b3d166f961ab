"""Texts that the benchmarks of data are given: evaluation questions, and documents made of them or
of other sentences.

Drawn from real ones where `CARAVAN_TEST_DATA` (or `../shared/data`) holds the folder of the tests
that has them, and otherwise from made-up words.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_DEFAULT = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
DATA = Path(os.environ.get("CARAVAN_TEST_DATA", _DEFAULT))
_SEED = 20_241_122
_MADE_UP = 1_300
"""Questions where there are no real ones."""
KINDS = ("verbatim", "embedded", "case and spaces", "paraphrased")
LEAKS = 300
"""Of each kind."""


class Document(NamedTuple):
    id: str
    """`KIND/number` of a leak, `text/number` of any other."""
    text: str


def questions() -> list[str]:
    """GSM8K's test questions and MMLU's, or made-up ones."""
    return _gsm8k() + _mmlu() if DATA.is_dir() else _made_up()


def documents(count: int) -> Iterator[Document]:
    """`count` prompts of sentences that belong to no question, with `LEAKS` more of each kind
    spread among them."""
    rng = random.Random(_SEED)
    sentences = _sentences()
    every = count // (LEAKS * len(KINDS))
    leaks = iter(_leaks(rng, sentences))
    for number in range(count):
        yield Document(f"text/{number}", _text(rng, sentences))
        if number % every == every - 1:
            yield from (leak for leak in [next(leaks, None)] if leak)


def _leaks(rng: random.Random, sentences: list[str]) -> list[Document]:
    asked, rephrased = (_gsm8k(), _rephrased()) if DATA.is_dir() else (_made_up(), _exchanged())
    found = []
    for number in range(LEAKS):
        first = number * len(KINDS)
        texts = (
            asked[first],
            f"{_text(rng, sentences)} {asked[first + 1]} {_text(rng, sentences)}",
            respaced(asked[first + 2], rng),
            rephrased[first + 3],
        )
        found += [Document(f"{k}/{number}", t) for k, t in zip(KINDS, texts, strict=True)]
    return found


def respaced(text: str, rng: random.Random) -> str:
    """The same words in other case, with other white space between them."""
    words = (rng.choice((str.upper, str.title, str.swapcase))(word) for word in text.split())
    return "".join(word + rng.choice((" ", "  ", "\n", "\t ")) for word in words)


def _rephrased() -> list[str]:
    """What a language model made of GSM8K's test questions (LLM decontaminator)."""
    file = DATA / "decontamination" / "llm_decontaminator" / "rephrase_gsm8k.jsonl"
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [text.removeprefix("Question: ").partition("\nAnswer:")[0] for text in texts]


def _exchanged() -> list[str]:
    """The made-up questions with every fifth word exchanged."""
    return [
        " ".join("instead" if i % 5 == 4 else word for i, word in enumerate(text.split()))
        for text in _made_up()
    ]


def _text(rng: random.Random, sentences: list[str]) -> str:
    return " ".join(rng.choices(sentences, k=rng.randint(2, 8)))


def _sentences() -> list[str]:
    """Those of prompts for training, each once, in a fixed order."""
    if not DATA.is_dir():
        rng = random.Random(_SEED)
        return [f"{_words(rng, rng.randint(6, 24))}." for _ in range(100_000)]
    found: dict[str, None] = {}
    for file in sorted((DATA / "sft" / "t0_train_50k").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                for sentence in re.split(r"(?<=[.?!])\s+|\n+", json.loads(line)["prompt"]):
                    if len(sentence.split()) > 3:
                        found[sentence.strip()] = None
    return list(found)


def _gsm8k() -> list[str]:
    file = DATA / "eval" / "gsm8k" / "test.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["question"] for line in lines]


def _mmlu() -> list[str]:
    from caravan.evals.files import mmlu

    return [instance.question or "" for instance in mmlu(DATA / "eval" / "mmlu", 0)]


def _made_up() -> list[str]:
    rng = random.Random(_SEED + 1)
    return [f"{_words(rng, rng.randint(20, 60))}?" for _ in range(_MADE_UP)]


def _words(rng: random.Random, count: int) -> str:
    """The first words of the vocabulary are the most frequent, as in a language."""
    return " ".join(f"w{int(rng.paretovariate(0.6)) % 50_000}" for _ in range(count))
