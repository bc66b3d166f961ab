"""What a launcher and its ranks tell each other, over more than one attempt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from caravan.stages.ranks.directory import RankDirectory, Spec
from caravan.stages.ranks.worker import RankContext
from caravan.training.parallel.ranks import Ranks


def spec(workdir: Path) -> Spec:
    return Spec("m:f", "m:C", {}, {}, 1, str(workdir), str(workdir), None)


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[int, object]] = []

    def log(self, step: int, metrics: object) -> None:
        self.events.append((step, metrics))

    def progress(self, done: int, total: int) -> None:
        self.events.append((done, total))


def test_the_next_attempt_tells_what_is_new_and_nothing_twice(tmp_path: Path) -> None:
    first = RankDirectory(tmp_path)
    first.prepare(spec(tmp_path))
    ranks = RankContext(spec(tmp_path), Ranks(), RankDirectory(tmp_path))
    told = Told()
    first.tell(told)  # type: ignore[arg-type]
    ranks.log(1, {"loss": 2.0})
    ranks.progress(1, 3)
    first.tell(told)  # type: ignore[arg-type]
    ranks.log(2, {"loss": 1.0})  # and the launcher is killed
    with (tmp_path / "ranks" / "events.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "me')
    assert told.events == [(1, {"loss": 2.0}), (1, 3)]

    again, told = RankDirectory(tmp_path), Told()
    again.prepare(spec(tmp_path))
    for _ in range(2):
        again.tell(told)  # type: ignore[arg-type]
        assert told.events == [(2, {"loss": 1.0})]
    ranks.progress(2, 3)
    again.tell(told)  # type: ignore[arg-type]
    assert told.events == [(2, {"loss": 1.0}), (2, 3)]


def test_what_the_leading_rank_warns_of_is_logged_by_the_launcher(tmp_path, caplog) -> None:
    directory = RankDirectory(tmp_path)
    directory.prepare(spec(tmp_path))
    script = (
        "import logging, pathlib, sys\n"
        "from caravan.operations.logs import configure_logging\n"
        "from caravan.stages.ranks.directory import RankDirectory\n"
        "from caravan.stages.ranks.worker import _leave_warnings_to_the_launcher\n"
        "configure_logging('text', stage='sft', rank='0')\n"
        "_leave_warnings_to_the_launcher(RankDirectory(pathlib.Path(sys.argv[1])))\n"
        "logging.getLogger('caravan.x').warning('%d rows are dropped', 3)\n"
        "logging.getLogger('caravan.x').error('it fails')\n"
    )
    rank = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    directory.tell(Told())  # type: ignore[arg-type]

    assert [(r.name, r.message) for r in caplog.records] == [("caravan.x", "3 rows are dropped")]
    assert "rows are dropped" not in rank.stderr
    assert " ERROR sft[0] caravan.x: it fails" in rank.stderr


def test_ranks_that_start_again_write_their_outputs_anew(tmp_path: Path) -> None:
    directory = RankDirectory(tmp_path)
    directory.prepare(spec(tmp_path))
    for attempt in range(2):
        path = RankContext(spec(tmp_path), Ranks(), directory).output("model", "model")
        assert list(path.iterdir()) == []
        (path / f"of-attempt-{attempt}").touch()
