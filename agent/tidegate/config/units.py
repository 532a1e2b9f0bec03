# SPDX-License-Identifier: Apache-2.0
"""Durations, sizes and addresses in the notation of nginx, Istio and Kubernetes; pure."""

from __future__ import annotations

import ipaddress
import re
from decimal import Decimal
from typing import NamedTuple

_DURATION_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_PORT = re.compile(r"\d{1,5}")


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def duration(text: str) -> float:
    """Read ``500ms``, ``10s``, ``1m30s``; returns seconds, raises ValueError."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"expected a duration like 500ms, 10s or 1m30s, found {text!r}")
    return float(sum(Decimal(number) * _DURATION_UNITS[unit] for number, unit in parts))


def duration_text(seconds: float) -> str:
    """Write seconds so that :func:`duration` reads the same."""
    exact = Decimal(repr(seconds))
    for unit in ("h", "m", "s", "ms"):
        number = exact / _DURATION_UNITS[unit]
        if number >= 1 and number == int(number):
            return f"{int(number)}{unit}"
    return f"{exact:f}s"


def listen(text: str) -> Listen | None:
    """Read ``127.0.0.1:19469``, ``[::1]:19469`` or ``off`` (None); raises ValueError."""
    if text == "off":
        return None
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not separator or not _PORT.fullmatch(port) or int(port) > 65535 or not _is_address(host):
        raise ValueError(f"expected ADDRESS:PORT like 127.0.0.1:19469 or [::1]:19469, or off, found {text!r}")
    return Listen(host, int(port))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
