"""The server's log on stderr: text for a terminal, one JSON object a line otherwise. It holds no bodies, addresses or identifiers."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """time, level, logger and message; what was given as ``extra={"facts": {...}}``; the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Text(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in getattr(record, "facts", {}).items())
        return f"{super().format(record)} {facts}".rstrip()


def logging_config(*, as_json: bool, access: bool) -> dict[str, Any]:
    """For ``logging.config.dictConfig``. access: whether every request is logged; uvicorn's own access log names addresses and is off."""
    own = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    form = {"()": JsonLines} if as_json else {"()": Text, "format": "%(asctime)s %(levelname)s %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"own": form},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "own", "stream": "ext://sys.stderr"}},
        "loggers": {
            "zoo": own,
            "zoo.access": {**own, "level": "INFO" if access else "WARNING"},
            "uvicorn": {**own, "level": "WARNING"},
            "uvicorn.error": {"level": "WARNING"},
            "uvicorn.access": {"level": "CRITICAL", "propagate": False},
        },
    }
