"""What a stage made and has not published yet, kept in case it is stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from caravan.stages.context import ArtifactKind, Score, StageResult


@dataclass(frozen=True)
class Made:
    """A stage's complete outputs in its work directory, and what it returned."""

    kinds: dict[str, ArtifactKind]
    result: StageResult

    def save(self, path: Path) -> None:
        content = {
            "kinds": self.kinds,
            "metrics": dict(self.result.metrics),
            "scores": [
                {**vars(score), "instances": dict(score.instances)} for score in self.result.scores
            ],
        }
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(content), encoding="utf-8")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Made:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = tuple(Score(**score) for score in content["scores"])
        return cls(content["kinds"], StageResult(content["metrics"], scores))


def plain_floats(result: StageResult) -> StageResult:
    """`result` in plain floats: stages may give numpy's or torch's."""
    scores = tuple(
        replace(
            score, value=float(score.value), low=float(score.low), high=float(score.high),
            n=int(score.n), instances={k: float(v) for k, v in score.instances.items()},
        )
        for score in result.scores
    )  # fmt: skip
    return StageResult({k: float(v) for k, v in result.metrics.items()}, scores)
