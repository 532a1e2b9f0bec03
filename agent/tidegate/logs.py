# SPDX-License-Identifier: Apache-2.0
"""The agent's own log on stderr, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line = {"time": record.created, "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str, format: Literal["text", "json"]) -> None:  # noqa: A002
    """Set up the root logger; may be called again."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(JsonFormatter() if format == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
