"""Copies of a stage's checkpoints in an S3 store, for a pod that starts on another node.

PREFIX/checkpoints/KEY/step-00000200/tensors.safetensors
PREFIX/checkpoints/KEY/step-00000200/state.json     written last: without it there is no copy
PREFIX/checkpoints/KEY/candidates/step-100/...      models that the checkpoints count on
PREFIX/checkpoints/KEY/so-far.jsonl                 what the stage shows while it runs
"""

from __future__ import annotations

import shutil
from pathlib import Path

from caravan.settings import Settings
from caravan.store.s3 import S3Object, S3Store

LAST = "state.json"


class S3Checkpoints:
    """Of the stage with one key."""

    def __init__(self, settings: Settings, key: str) -> None:
        self.key = key
        self._settings = settings
        self._store = S3Store(settings.resolved_store_url, settings)
        self._prefix = f"checkpoints/{key}/"

    def environment(self) -> dict[str, str]:
        """The variables from which `load_settings` finds the same store."""
        return self._settings.environment()

    def upload(self, directory: Path, parent: str = "") -> None:
        """Keep a copy of a complete checkpoint, under the name of its directory.

        Args:
            parent: of other directories: what to keep them under.

        Raises:
            StoreError: the store does not take it.
        """
        files = sorted(directory.iterdir(), key=lambda path: path.name == LAST)
        for path in files:
            self._store.upload(path, f"{self._place(directory, parent)}{path.name}")

    def has(self, directory: Path, parent: str) -> bool:
        """Whether there is a copy of every file of a directory that was kept under `parent`.

        Raises:
            StoreError: the store does not answer.
        """
        place = self._place(directory, parent)
        return {f"{place}{path.name}" for path in directory.iterdir()} <= set(
            self._store.keys(place)
        )

    def fetch_one(self, directory: Path, parent: str) -> None:
        """Put a directory that was kept under `parent` back in its place, if there is a copy.

        Raises:
            StoreError: the store does not answer.
        """
        self._download(self._place(directory, parent), directory)

    def fetch(self, parent: Path) -> None:
        """Put the newest copy into `parent`, unless it has one as new.

        Raises:
            StoreError: the store does not answer.
        """
        names = self._names()
        newest = max(names, default=None)
        here = max((path.name for path in parent.glob("step-*")), default="")
        if newest is None or newest <= here:
            return
        self._download(f"{self._prefix}{newest}/", parent / newest)

    def keep(self, names: list[str]) -> None:
        """Remove all copies of checkpoints but these; where none is to stay, all there is of the
        stage."""
        for key in self._store.keys(self._prefix):
            name = key.removeprefix(self._prefix).partition("/")[0]
            if not names or (name.startswith("step-") and name not in names):
                self._store.remove(key)

    @staticmethod
    def stored(store: S3Store) -> dict[str, list[S3Object]]:
        """The copies in a store, by the keys of their stages."""
        found: dict[str, list[S3Object]] = {}
        for item in store.objects("checkpoints/"):
            found.setdefault(item.key.split("/")[1], []).append(item)
        return found

    def share(self, path: Path) -> None:
        """Put a copy of a file beside the checkpoints, for others to read.

        Raises:
            StoreError: the store does not take it.
        """
        self._store.upload(path, f"{self._prefix}{path.name}")

    def shared(self, name: str, directory: Path) -> Path | None:
        """A copy in `directory` of a file that was shared; None where none was.

        Raises:
            StoreError: the store does not answer.
        """
        key = f"{self._prefix}{name}"
        if key not in self._store.keys(key):
            return None
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.key}-{name}"
        self._store.download(key, path)
        return path

    def _place(self, directory: Path, parent: str) -> str:
        return f"{self._prefix}{parent}{'/' if parent else ''}{directory.name}/"

    def _download(self, place: str, directory: Path) -> None:
        """Whole or not at all."""
        keys = list(self._store.keys(place))
        if not keys:
            return
        aside = directory.with_name(f"fetching-{directory.name}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for key in keys:
            self._store.download(key, aside / key.rpartition("/")[2])
        aside.rename(directory)

    def _names(self) -> list[str]:
        """Of the complete copies."""
        keys = self._store.keys(self._prefix)
        return [key.split("/")[-2] for key in keys if key.endswith(f"/{LAST}")]
