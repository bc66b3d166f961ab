"""Copies of a stage's checkpoints in an S3 store, for a pod that starts on another node.

PREFIX/checkpoints/KEY/step-00000200/tensors.safetensors
PREFIX/checkpoints/KEY/step-00000200/state.json     written last: without it there is no copy
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

    def upload(self, directory: Path) -> None:
        """Keep a copy of a complete checkpoint, under the name of its directory.

        Raises:
            StoreError: the store does not take it.
        """
        files = sorted(directory.iterdir(), key=lambda path: path.name == LAST)
        for path in files:
            self._store.upload(path, f"{self._prefix}{directory.name}/{path.name}")

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
        aside = parent / f"fetching-{newest}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for key in self._store.keys(f"{self._prefix}{newest}/"):
            self._store.download(key, aside / key.rpartition("/")[2])
        aside.rename(parent / newest)

    def keep(self, names: list[str]) -> None:
        """Remove all copies but these; where none is to stay, all there is of the stage."""
        for key in self._store.keys(self._prefix):
            name, _, rest = key.removeprefix(self._prefix).partition("/")
            if name not in names and (rest or not names):
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

    def _names(self) -> list[str]:
        """Of the complete copies."""
        keys = self._store.keys(self._prefix)
        return [key.split("/")[-2] for key in keys if key.endswith(f"/{LAST}")]
