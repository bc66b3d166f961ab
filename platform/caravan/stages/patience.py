"""Waiting for a registry or a store that is away."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from caravan.errors import RegistryUnavailableError, StoreUnavailableError
from caravan.registry import Registry, open_registry
from caravan.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")


def open_patiently(settings: Settings) -> Registry:
    """The registry, waited for while it is away."""
    return patiently(lambda: open_registry(settings), settings.patience_seconds)


def patiently(attempt: Callable[[], T], patience_seconds: float) -> T:
    """Do something, again and again while the registry or the store is away."""
    deadline, pause = time.monotonic() + patience_seconds, 0.25
    while True:
        try:
            return attempt()
        except (RegistryUnavailableError, StoreUnavailableError) as error:
            if time.monotonic() + pause > deadline:
                raise
            logger.warning("%s; trying again", error)
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
