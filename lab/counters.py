# SPDX-License-Identifier: Apache-2.0
"""What the kernel itself counts in a namespace, from the text that it and ``ss`` print."""

from __future__ import annotations


def snmp(text: str) -> dict[str, int]:
    """Read /proc/net/snmp and netstat, lines of names and of values in turn, by ``Tcp.RetransSegs`` and so on."""
    lines = [line.split() for line in text.splitlines()]
    found: dict[str, int] = {}
    for (group, *names), (_, *values) in zip(lines[::2], lines[1::2], strict=True):
        found |= {f"{group.rstrip(':')}.{name}": int(n) for name, n in zip(names, values, strict=True)}
    return found


def open_sockets(text: str) -> int:
    """Count the sockets in what ``ss -Htan`` prints: not listening, not in TIME_WAIT; orphans are among them."""
    states = [line.split(maxsplit=1)[0] for line in text.splitlines() if line]
    return sum(state not in ("LISTEN", "TIME-WAIT") for state in states)
