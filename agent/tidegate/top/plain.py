# SPDX-License-Identifier: Apache-2.0
"""One frame of the view as plain lines: for pipes, scripts and simple terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidegate.errors import UsageError
from tidegate.model.snapshot import Health, View
from tidegate.top.columns import DEFAULTS, TABLES, Column, duration, reasons


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a frame shows: tables, the column to sort by, text that a row must hold, columns."""

    tables: tuple[str, ...] = ("services", "endpoints")
    sort: str | None = None
    filter: str = ""
    columns: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise :class:`UsageError` for a table or a column that does not exist."""
        for table in self.tables:
            if table not in TABLES:
                raise UsageError(f"--view {table}: expected one of {', '.join(TABLES)}")
        known = {column.name for table in self.tables for column in TABLES[table]}
        for name in (*self.columns, *([self.sort] if self.sort else ())):
            if name not in known:
                raise UsageError(f"column {name}: expected one of {', '.join(sorted(known))}")


def frame(view: View, options: Options, width: int | None = None, height: int | None = None) -> list[str]:
    """Draw one frame; lines are cut to ``width`` and rows to ``height`` where they are given."""
    lines = header(view)
    room = None if height is None else max((height - len(lines)) // len(options.tables) - 3, 1)
    for table in options.tables:
        lines += ["", *draw(table, getattr(view, table), options, room)]
    return [line.rstrip() if width is None else line[:width].rstrip() for line in lines]


def header(view: View) -> list[str]:
    """Name the node, and the agent's own state in a second line."""
    node = (
        f"tidegate {view.health.version}  {view.node.name}  Linux {view.node.kernel}  {view.node.cpus} CPUs  "
        f"up {uptime(view.node.uptime)}  interval {view.interval:.1f}s"
    )
    return [node, agent(view.health, view.interval)]


def agent(health: Health, interval: float) -> str:
    """Write what the agent takes and what it lost; ticks only where some began late."""
    maps = sum(m.bytes for m in health.maps.values() if m.bytes is not None)
    losses = {kind: n for kind, n in (health.events_lost | health.losses).items() if n}
    kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(losses.items(), key=lambda loss: -loss[1]))
    parts = [
        "agent" if health.cpu is None else f"agent {health.cpu:.1%} CPU",
        "" if health.program_cpu is None else f"programs {health.program_cpu:.2%} CPU",
        "" if health.rss_bytes is None else f"{size(health.rss_bytes)} RSS",
        f"maps {size(maps)}",
        f"rows {health.rows}/{health.rows_limit}",
        f"lost {sum(losses.values())}" + (f" ({kinds})" if kinds else ""),
    ]
    if health.ticks_late or health.ticks_skipped:
        late = f"ticks {health.ticks_late} late {health.ticks_skipped} skipped"
        parts.append(
            f"{late}, now by {duration(health.late_seconds)}" if health.late_seconds > interval / 10 else late
        )
    return "  ".join(part for part in parts if part)


def size(count: int) -> str:
    """Write bytes with one digit after the point."""
    if count < 1 << 20:
        return f"{count / (1 << 10):.1f} KiB"
    return f"{count / (1 << 20):.1f} MiB"


def uptime(seconds: float) -> str:
    """Write days, hours and minutes."""
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days}d{hours:02}h" if days else f"{hours}h{minutes % 60:02}m"


def draw(table: str, rows: Sequence[Any], options: Options, room: int | None) -> list[str]:
    """Draw one table, the busiest rows first unless another order is asked for."""
    by_name = {column.name: column for column in TABLES[table]}
    names = [name for name in options.columns if name in by_name] or list(DEFAULTS[table])
    columns = [by_name[name] for name in names]
    if not options.columns and not any(row.container for row in rows):
        columns.remove(by_name["container"])  # as on a host without pods
    rows = [row for row in rows if not options.filter or options.filter in " ".join(texts(row, columns))]
    rows = ordered(rows, by_name.get(options.sort or ""))
    cells = [[c.title for c in columns], *(texts(row, columns) for row in rows[:room])]
    widths = [max(c.width, *(len(line[i]) for line in cells)) for i, c in enumerate(columns)]
    lines = [
        "  ".join(pad(text, w, c) for text, w, c in zip(line, widths, columns, strict=True)) for line in cells
    ]
    if not rows:
        lines.append("(none yet)")
    elif room is not None and len(rows) > room:
        lines.append(f"({len(rows) - room} more)")
    return lines


def ordered(rows: Sequence[Any], column: Column | None) -> list[Any]:
    """Sort by a column, numbers downwards and text upwards; without one by failures, then by traffic."""
    if column is None:
        return sorted(
            rows,
            key=lambda row: (
                -(row.failure_rate or 0.0),
                -((row.connect_rate or 0.0) + (row.accept_rate or 0.0)),
                -(row.sent_rate + row.received_rate),
                -row.open,
                row.service,
            ),
        )
    present = [row for row in rows if column.value(row) is not None]
    if column.text is reasons:
        present.sort(key=lambda row: sum(column.value(row).values()), reverse=True)
    else:
        present.sort(key=column.value, reverse=not any(isinstance(column.value(row), str) for row in present))
    return present + [row for row in rows if column.value(row) is None]


def texts(row: Any, columns: Sequence[Column]) -> list[str]:
    """Write a row's cells."""
    return [c.text(c.value(row)) for c in columns]


def pad(text: str, width: int, column: Column) -> str:
    """Fill a cell to its column's width."""
    return text.ljust(width) if column.left else text.rjust(width)
