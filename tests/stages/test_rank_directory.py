"""What a launcher and its ranks tell each other, over more than one attempt."""

from __future__ import annotations

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


def test_ranks_that_start_again_write_their_outputs_anew(tmp_path: Path) -> None:
    directory = RankDirectory(tmp_path)
    directory.prepare(spec(tmp_path))
    for attempt in range(2):
        path = RankContext(spec(tmp_path), Ranks(), directory).output("model", "model")
        assert list(path.iterdir()) == []
        (path / f"of-attempt-{attempt}").touch()
