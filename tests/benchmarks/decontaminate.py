"""Decontamination of prompts with planted leaks, against plain Python and, where `make peers` has
installed it, AI2's decon."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.decontaminate_side import QUESTIONS, SOURCE
from tests.benchmarks.text_work import KINDS, LEAKS, Document, documents, questions
from tests.benchmarks.turns import (
    PEERS,
    REPETITIONS,
    Turn,
    conditions,
    ratios,
    spread,
    take_turns,
    turn,
)

from caravan.data.io import ROWS, write_rows
from caravan.data.records import Conversation, Message

COUNTS = (100_000, 1_000_000)
"""Prompts."""
SIDES = {
    "whole": ["caravan", "plain", "decon"],
    "matching, in memory": ["caravan-match", "plain-match"],
}


def main() -> None:
    for count in COUNTS:
        compare(count, REPETITIONS if count < COUNTS[-1] else 1)
    print(conditions("decontaminate") if PEERS.exists() else conditions())


def compare(count: int, repetitions: int) -> None:
    """Print a table, the first side of a part against its others."""
    given, asked = list(documents(count)), questions()
    mb = sum(len(document.text.encode()) for document in given) / 1e6
    print(f"\n{count:,} prompts and {len(KINDS) * LEAKS} leaks, {mb:.0f} MB; ", end="")
    print(f"{len(asked):,} questions; {repetitions} repetitions\n")
    print(
        "| part | side | documents per CPU-second | MB per CPU-second | Caravan over it |", end=""
    )
    print(f" peak MiB | found: {', '.join(KINDS)} (of {LEAKS} each) | false positives |")
    print("|---|---|---|---|---|---|---|---|")
    for part, names in SIDES.items():
        with _work(given, asked) as work:
            sides = {name: _side(name, work) for name in names if _is_there(name)}
            found = take_turns(sides, repetitions)
        for name, turns in found.items():
            rates = [len(given) / t.seconds for t in turns]
            over = spread(ratios(found[names[0]], turns), 2)
            dropped = Counter(id.partition("/")[0] for id in turns[0].found)
            print(
                f"| {part} | {name} | {spread(rates, 0)} "
                f"| {mb / statistics.median(t.seconds for t in turns):.2f} | {over} "
                f"| {turns[0].peak_mib:.0f} | {', '.join(str(dropped[kind]) for kind in KINDS)} "
                f"| {dropped['text']} |",
                flush=True,
            )


def _is_there(side: str) -> bool:
    if side == "decon" and not PEERS.exists():
        print("decon is not installed: make peers", file=sys.stderr)
        return False
    return True


def _side(name: str, work: Path) -> Callable[[], Turn]:
    def side() -> Turn:
        with tempfile.TemporaryDirectory() as out:
            if name == "decon":
                return turn("decon_side", work, out, peer=True)
            return turn("decontaminate_side", name, work, out)

    return side


@contextmanager
def _work(given: Sequence[Document], asked: Sequence[str]) -> Iterator[Path]:
    """A directory with the documents and questions in the forms that the sides read."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_rows(directory / "curated" / ROWS, map(_row, given))
        _write(directory / QUESTIONS, [{"prompt": text, "ground_truth": "-"} for text in asked])
        _write(directory / "texts" / "texts.jsonl", [document._asdict() for document in given])
        keys = {"eval_key": "questions", "split": "test", "is_correct": True}
        instances = [
            keys | {"eval_instance_index": i, "doc_id": i, "fingerprint": str(i), "question": text}
            for i, text in enumerate(asked)
        ]
        _write(directory / "evals" / "questions_test-1.jsonl", instances)
        yield directory


def _row(document: Document) -> Conversation:
    return Conversation(
        id=document.id,
        messages=(Message(role="user", content=document.text),),
        source=SOURCE,
        skill="chat",
        license="Apache-2.0",
    )


def _write(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
