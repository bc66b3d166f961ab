"""Near duplicates of prompts, against the MinHash of other packages (`make peers`)."""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.near_duplicates_side import THRESHOLD
from tests.benchmarks.text_work import Document, documents, respaced
from tests.benchmarks.turns import PEERS, Turn, conditions, ratios, spread, take_turns, turn

from caravan.data.dedup import SHINGLE_WORDS, normalise

GROUPS = 2_000
"""Texts of which there are variants, `VARIANTS` of each."""
SINGLE = 40_000
VARIANTS = 5
_SEED = 11
OWN = ("caravan", "curate")
PEER = ("datasketch", "rensa", "text-dedup")


def main() -> None:
    given, true = _work()
    mb = sum(len(document.text.encode()) for document in given) / 1e6
    if not PEERS.exists():
        print("no peer is installed: make peers", file=sys.stderr)
    names = (*OWN, *PEER) if PEERS.exists() else OWN
    with tempfile.TemporaryDirectory() as directory:
        rows = Path(directory) / "rows.jsonl"
        lines = [json.dumps({"id": document.id, "prompt": document.text}) for document in given]
        rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = take_turns({name: _side(name, rows) for name in names})
    print(f"{len(given):,} prompts, {mb:.0f} MB; {len(true):,} of them repeat an earlier one\n")
    print("| side | rows per CPU-second | Caravan over it | peak MiB |", end="")
    print(" dropped | of them no duplicates | duplicates kept |\n|---|---|---|---|---|---|---|")
    for name, turns in found.items():
        dropped = set(turns[0].found)
        rates = [len(given) / t.seconds for t in turns]
        print(
            f"| {name} | {spread(rates, 0)} | {spread(ratios(found[names[0]], turns), 2)} "
            f"| {statistics.median(t.peak_mib for t in turns):.0f} | {len(dropped):,} "
            f"| {len(dropped - true):,} | {len(true - dropped):,} |"
        )
    print(conditions(*PEER) if PEERS.exists() else conditions(), flush=True)


def _side(name: str, rows: Path) -> Callable[[], Turn]:
    def side() -> Turn:
        with tempfile.TemporaryDirectory() as out:
            if name in PEER:
                return turn("near_duplicates_peer", name, rows, out, peer=True)
            return turn("near_duplicates_side", name, rows, out)

    return side


def _work() -> tuple[list[Document], set[str]]:
    """Prompts in a mixed order, and the ids of those that repeat an earlier one that stays."""
    rng = random.Random(_SEED)
    texts = [d.text for d in documents(GROUPS + SINGLE) if d.id.startswith("text/")]
    given = [(None, Document(f"single/{i}", text)) for i, text in enumerate(texts[GROUPS:])]
    mixed: list[tuple[int | None, Document]] = [*given]
    for group, text in enumerate(texts[:GROUPS]):
        family = (text, *_variants(text, rng))
        mixed += [(group, Document(f"{group}/{i}", each)) for i, each in enumerate(family)]
    rng.shuffle(mixed)
    families: dict[int, list[set[tuple[str, ...]]]] = {}
    repeated = set()
    for number, document in mixed:
        if number is not None:
            stay, own = families.setdefault(number, []), _shingles(document.text)
            if any(len(own & other) / len(own | other) >= THRESHOLD for other in stay):
                repeated.add(document.id)
            else:
                stay.append(own)
    return [document for _, document in mixed], repeated


def _variants(text: str, rng: random.Random) -> Sequence[str]:
    """A copy, one with other case and spaces, one with an end, one with a few words exchanged, and
    one that shares half."""
    words = text.split()
    for _ in range(rng.randint(1, 3)):
        words[rng.randrange(len(words))] = "instead"
    half = text.split()[: len(words) // 2]
    return (
        text,
        respaced(text, rng),
        f"{text} Thank you.",
        " ".join(words),
        " ".join([*half, "and", "then", *half[::-1]]),
    )


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = normalise(text).split()
    width = min(SHINGLE_WORDS, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}
