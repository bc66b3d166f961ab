"""Logs: for people, or one JSON object a line with the ids of run and stage.

CARAVAN_LOG_FORMAT=json
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """One line a record: `time`, `level`, `logger`, `message`, `run`, `stage`, `exception`."""

    def __init__(self, **ids: str) -> None:
        super().__init__()
        self._ids = {name: value for name, value in ids.items() if value}

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._ids,
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(log_format: LogFormat, *, run: str = "", stage: str = "") -> None:
    """Send this process's log to its standard error, every line with `run` and `stage` in JSON."""
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter(run=run, stage=stage))
    else:
        handler.setFormatter(logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
