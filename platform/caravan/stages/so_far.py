"""The rows that a stage shows before it has finished: a file in its work directory and, where the
store is one that other machines reach, a copy there. Both go when the stage has published."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import BaseModel

from caravan.data.io import write_rows
from caravan.errors import StoreError
from caravan.settings import Settings

if TYPE_CHECKING:
    from caravan.store.checkpoints import S3Checkpoints

FILE = "so-far.jsonl"
logger = logging.getLogger(__name__)


def write_so_far(workdir: Path, rows: Iterable[BaseModel], remote: S3Checkpoints | None) -> None:
    """Show these rows in place of the ones before."""
    write_rows(workdir / FILE, rows)
    if remote is not None:
        try:
            remote.share(workdir / FILE)
        except StoreError as error:  # no reason to stop a training
            logger.warning("what is known so far could not be copied: %s", error)


def so_far(settings: Settings, key: str) -> Path | None:
    """The file of the stage with this key; None where it shows nothing yet, or no more.

    Raises:
        StoreError: the store does not answer.
    """
    if urlsplit(settings.resolved_store_url).scheme != "s3":
        path = settings.work_dir / key / "scratch" / FILE
        return path if path.exists() else None
    from caravan.store.checkpoints import S3Checkpoints

    return S3Checkpoints(settings, key).shared(FILE, settings.cache_dir / "so-far")
