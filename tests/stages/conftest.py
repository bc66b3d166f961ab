from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from caravan.stages.context import ArtifactKind


@dataclass
class DirectoryContext:
    """A stage's context in a directory, without store and registry."""

    root: Path
    seed: int = 17
    recipe_dir: Path = Path("/")
    outputs: dict[str, Path] = field(default_factory=dict)
    logged: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    reported: list[tuple[int, int]] = field(default_factory=list)

    @property
    def workdir(self) -> Path:
        path = self.root / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def output(self, name: str, kind: ArtifactKind) -> Path:
        path = self.root / "out" / name
        path.mkdir(parents=True)
        self.outputs[name] = path
        return path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged.append((step, metrics))

    def progress(self, done: int, total: int) -> None:
        self.reported.append((done, total))


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., DirectoryContext]:
    """`make_context("name", seed=3)`: a context whose outputs lie in a directory of that name."""

    def make(name: str = "stage", **values: object) -> DirectoryContext:
        return DirectoryContext(tmp_path / name, **({"recipe_dir": tmp_path} | values))  # type: ignore[arg-type]

    return make
