"""The registry that the settings name."""

from __future__ import annotations

from caravan.registry.registry import Registry
from caravan.settings import Settings, load_settings


def open_registry(settings: Settings | None = None) -> Registry:
    """The registry of these settings, or of this environment's."""
    settings = settings or load_settings()
    return Registry(
        settings.resolved_registry_url, stale_after_seconds=settings.stale_after_seconds
    )
