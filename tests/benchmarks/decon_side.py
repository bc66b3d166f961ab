"""python -m tests.benchmarks.decon_side WORK OUT: decontamination by AI2's decon, as it ships but
for its threads, of which it has one. Runs in `.venv-peers`."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.benchmarks.turns import measured


def main(work: Path, out: Path) -> None:
    import decon

    texts, kept = work / "texts", out / "cleaned"
    config = decon.Config(
        str(texts), str(work / "evals"), str(out / "reports"),
        cleaned_output_dir=str(kept), purify=True, worker_threads=1,
    )  # fmt: skip

    def lacking(_: object) -> list[str]:
        (file,) = texts.iterdir()
        (cleaned,) = kept.iterdir()
        with file.open() as before, gzip.open(cleaned, "rt") as after:
            return sorted(set(_ids(before)) - set(_ids(after)))

    measured(lambda: decon.detect(config), lacking)


def _ids(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        yield json.loads(line)["id"]


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
