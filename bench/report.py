# SPDX-License-Identifier: Apache-2.0
"""The figures as a page of docs/."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured figure beside its target, with how it was measured."""

    name: str
    measured: str
    target: str
    method: str


def page(figures: Iterable[Figure], cpus: int) -> str:
    """Return docs/performance.md."""
    lines = [
        "# Performance",
        "",
        f"Measured by `make bench` on Linux {platform.release()}, {platform.machine()}, {cpus} CPUs, Python",
        f"{platform.python_version()}. The machine is virtual and shared: treat 15 % as noise; ratios are of",
        "rounds that ran one after the other, A and B by turns. The numbers are what this run gave, also where",
        "they miss their target.",
        "",
        "| figure | measured | target | method |",
        "|---|---|---|---|",
    ]
    lines += [f"| {f.name} | {f.measured} | {f.target} | {f.method} |" for f in figures]
    return "\n".join(lines) + "\n"
