# SPDX-License-Identifier: Apache-2.0
"""What is remembered of earlier views, bounded in time and memory."""

from __future__ import annotations

import math
import struct

from tidegate.model.snapshot import View
from tidegate.model.window import TABLES, Key, Packed, Point, Window

__all__ = ["History"]


class History:
    """The counts at two earlier moments, so that there always is a window of half ``length`` seconds or more.

    Until then it begins with the agent. Snapshots of 1,000 rows take 3 MB each; of these counts, 0.4 MB.
    """

    def __init__(self, length: float) -> None:
        self.length = length
        self._now = self._begin_at = self._middle_at = 0.0
        self._begin = self._middle = Point({}, {})

    def add(self, view: View) -> Window:
        """Take the next view and return the window that ends with it."""
        self._now += view.interval  # not the node's clock, which may be set
        for known in {id(point): point for point in (self._begin, self._middle)}.values():
            _add_first_sights(known, view)
        window = Window(view, self._begin, self._now - self._begin_at)
        if self._now - self._middle_at >= self.length / 2:
            self._begin, self._begin_at = self._middle, self._middle_at
            self._middle, self._middle_at = _point(view, self._begin), self._now
        return window


def _point(view: View, before: Point) -> Point:
    """Return the counts of a view; those that are as before share their memory."""
    tables: dict[str, dict[Key, Packed]] = {}
    for table in TABLES:
        old = before.tables.get(table.name, {})
        rows = tables[table.name] = {}
        for row in table.rows(view) or ():
            key, packed = table.key(row), table.pack(row)
            earlier = old.get(key)
            rows[key] = earlier if earlier is not None and earlier == packed else packed
    return Point(tables, view.health.losses | view.health.events_lost)


def _add_first_sights(known: Point, view: View) -> None:
    """Let what the kernel has always counted begin where it is first seen, or first measured."""
    for table in TABLES:
        if table.since_start:
            continue
        rows = known.tables.setdefault(table.name, {})
        for row in table.rows(view) or ():
            key = table.key(row)
            if key not in rows or not _is_measured(rows[key]):
                rows[key] = table.pack(row)


def _is_measured(packed: Packed) -> bool:
    return not any(math.isnan(number) for number in struct.unpack(f"{len(packed) // 8}d", packed))
