"""Completing prompts: one protocol, several engines."""

from caravan.inference.engine import (
    TOO_LONG,
    Engine,
    EngineError,
    Generation,
    without_reply,
)
from caravan.inference.loading import load_engine, unload

__all__ = [
    "TOO_LONG",
    "Engine",
    "EngineError",
    "Generation",
    "load_engine",
    "unload",
    "without_reply",
]
