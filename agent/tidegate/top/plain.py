# SPDX-License-Identifier: Apache-2.0
"""One frame of the view as plain lines: for pipes, scripts and simple terminals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tidegate.errors import UsageError
from tidegate.model.snapshot import View
from tidegate.top.columns import DEFAULTS, TABLES, Column, reasons


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
    lines = [header(view)]
    room = None if height is None else max((height - 1) // len(options.tables) - 3, 1)
    for table in options.tables:
        lines += ["", *draw(table, getattr(view, table), options, room)]
    return [line.rstrip() if width is None else line[:width].rstrip() for line in lines]


def header(view: View) -> str:
    """Name the node and the agent's own state."""
    health = view.health
    lost = sum(health.events_lost.values()) + sum(health.losses.values())
    return (
        f"tidegate {health.version}  {view.node.name}  Linux {view.node.kernel}  {view.node.cpus} CPUs  "
        f"up {uptime(view.node.uptime)}  interval {view.interval:.1f}s  "
        f"rows {health.rows}/{health.rows_limit}  losses {lost}"
    )


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
