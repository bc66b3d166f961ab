"""python -m tests.benchmarks.near_duplicates_peer SIDE ROWS OUT: near duplicates by other packages,
with word 5-grams, 128 permutations and the same threshold. Runs in `.venv-peers`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.turns import measured

THRESHOLD = 0.9
PERMUTATIONS = 128
WORDS = 5


def datasketch(rows: Path, out: Path) -> None:
    from datasketch import MinHash, MinHashLSH

    given = _given(rows)

    def work() -> list[str]:
        index, dropped = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS), []
        for id, text in given:
            signature = MinHash(num_perm=PERMUTATIONS)
            signature.update_batch([shingle.encode() for shingle in _shingles(text)])
            if index.query(signature):
                dropped.append(id)
            else:
                index.insert(id, signature)
        return dropped

    measured(work, sorted)


def rensa(rows: Path, out: Path) -> None:
    from rensa import RMinHash, RMinHashDeduplicator

    given = _given(rows)

    def work() -> list[str]:
        index, dropped = RMinHashDeduplicator(THRESHOLD, PERMUTATIONS, True), []
        for id, text in given:
            signature = RMinHash(PERMUTATIONS, 42)
            signature.update(list(_shingles(text)))
            if not index.add(id, signature):
                dropped.append(id)
        return dropped

    measured(work, sorted)


def text_dedup(rows: Path, out: Path) -> None:
    from datasets import load_from_disk
    from text_dedup.config.base import load_config_from_toml
    from text_dedup.minhash import main as minhash

    settings = out / "text-dedup.toml"
    settings.write_text(f"""
[input]
input_type = "local_files"
file_type = "json"
read_arguments = {{ path = "json", data_files = "{rows}", split = "train", cache_dir = "{out}" }}
[algorithm]
algorithm_name = "minhash"
text_column = "prompt"
num_proc = 1
num_perm = {PERMUTATIONS}
ngram_size = {WORDS}
threshold = {THRESHOLD}
min_length = 0
check_false_positive = true
[output]
output_dir = "{out}/kept"
[debug]
""")
    config = load_config_from_toml(settings)

    def dropped(_: object) -> list[str]:
        kept = set(load_from_disk(str(out / "kept"))["id"])
        return sorted({id for id, _ in _given(rows)} - kept)

    measured(lambda: minhash(config), dropped)


def _given(rows: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    return [(row["id"], row["prompt"]) for row in lines]


def _shingles(text: str) -> set[str]:
    words = text.casefold().split()
    width = min(WORDS, len(words))
    return {" ".join(words[i : i + width]) for i in range(len(words) - width + 1)}


SIDES = {"datasketch": datasketch, "rensa": rensa, "text-dedup": text_dedup}


def main(arguments: Sequence[str]) -> None:
    side, rows, out = arguments
    SIDES[side](Path(rows), Path(out))


if __name__ == "__main__":
    main(sys.argv[1:])
