"""Copy artifacts out of the store, where their directories and files are read-only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from caravan.errors import CaravanError
from caravan.store.manifest import list_files


def copy_out(source: Path, target: Path) -> None:
    """Make `target` a writable copy of the directory `source`, whole or not at all.

    A directory that is there already is replaced, also one that is read-only.

    Raises:
        CaravanError: it cannot be written; nothing is left of the copy.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
            for relative, path in list_files(source):
                copy = partial / relative
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            _remove(target)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise CaravanError(
            f"copying to {target}: {error.strerror or error}; free some space there, "
            "or name a directory that this user may write to, and try again"
        ) from error


def _remove(directory: Path) -> None:
    if not directory.is_dir():
        return
    for root, _, _ in os.walk(directory):
        os.chmod(root, 0o755)
    shutil.rmtree(directory)
