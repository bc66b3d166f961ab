"""Completing prompts: one protocol, several engines."""

from caravan.inference.engine import (
    TOO_LONG,
    Engine,
    EngineError,
    Generation,
    asked_in,
    naming,
    without_reply,
)
from caravan.inference.loading import load_engine, unload

__all__ = [
    "TOO_LONG",
    "Engine",
    "EngineError",
    "Generation",
    "asked_in",
    "load_engine",
    "naming",
    "unload",
    "without_reply",
]
