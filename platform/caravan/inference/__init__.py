"""Completing prompts: one protocol, several engines."""

from caravan.inference.engine import Engine, EngineError, Generation
from caravan.inference.loading import load_engine, unload

__all__ = ["Engine", "EngineError", "Generation", "load_engine", "unload"]
