"""Structured logs: one JSON object per line, without API keys, texts, images or file names of requests."""

from __future__ import annotations

import json
import logging
import time
from typing import TypeAlias

LOGGER = logging.getLogger("openblip.serving")

Field: TypeAlias = str | int | float | bool | None


def log(event: str, *, level: int = logging.INFO, **fields: Field) -> None:
    """Write an event.

    Args:
        event: Name of the event.
        level: Level of the standard library's logging.
        **fields: Values, without text from requests.
    """
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, json.dumps({"event": event, **fields}, ensure_ascii=True))


class JsonFormatter(logging.Formatter):
    """Formats records as JSON lines with a time and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        message = record.getMessage()
        if record.name == LOGGER.name and message.startswith("{"):
            line |= json.loads(message)
        else:
            line |= {"event": "message", "logger": record.name, "message": message}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)
