"""Logs: for people, or one JSON object a line with the ids of run and stage.

CARAVAN_LOG_FORMAT=json
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
TEXT = "%(asctime)s %(levelname)s {where}%(name)s: %(message)s"
IDS = "CARAVAN_LOG_IDS"
"""Variable that hands the ids on to child processes."""


class JsonFormatter(logging.Formatter):
    """One line a record: `time`, `level`, `logger`, `message`, the ids, and `exception`."""

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


def configure_logging(log_format: LogFormat, *, level: int = logging.INFO, **ids: str) -> None:
    """Send this process's log to its standard error.

    Args:
        ids: `run`, `stage`, `rank`: in every line of JSON, also of processes that this one starts
            and that configure their logs themselves. Of text, stage and rank alone.
    """
    ids = json.loads(os.environ.get(IDS, "{}")) | ids
    os.environ[IDS] = json.dumps(ids)
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonFormatter(**ids))
    else:
        where = ids.get("stage", "") + (f"[{ids['rank']}]" if "rank" in ids else "")
        handler.setFormatter(logging.Formatter(TEXT.format(where=f"{where} " if where else "")))
    logging.basicConfig(level=level, handlers=[handler], force=True)
