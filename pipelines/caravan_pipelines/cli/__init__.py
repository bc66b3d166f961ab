"""The `caravan` command. Every verb imports what it needs when it runs, so `--help` is quick."""

from caravan_pipelines.cli.app import main

__all__ = ["main"]
