# SPDX-License-Identifier: Apache-2.0
"""What a guest tells its host, as one line of JSON on the console."""

from __future__ import annotations

import msgspec

from tests.vm.disk import DiskReport
from tests.vm.shortage import Shortage
from tests.vm.traffic import Count
from tidegate.model.feature import Feature

MARKER = "tidegate-guest-report: "

#: How many entries the guest puts into a map that grows, to have them counted.
ENTRIES = 1500

#: Counts by service, role and endpoint, as "gateway.service client 127.0.0.1:80".
Rows = dict[str, Count]


class ProgramReport(msgspec.Struct, frozen=True):
    """One program: loaded and attached, or the reason, with the verifier's last lines."""

    name: str
    section: str
    loaded: bool
    attached: bool
    reason: str = ""

    def __str__(self) -> str:
        state = "attached" if self.attached else "loaded, not attached" if self.loaded else "refused"
        return f"{self.name} ({self.section}): {state}" + (f": {self.reason}" if self.reason else "")


class ObjectReport(msgspec.Struct, frozen=True):
    """One object: loaded as a whole, or the reason; where it didn't load, each program stands for itself."""

    name: str
    loaded: bool
    programs: list[ProgramReport]
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether all of it could be loaded and attached."""
        return self.loaded and all(program.attached for program in self.programs)

    def __str__(self) -> str:
        lines = [self.reason or f"object {self.name}: loaded"]
        return "\n".join([*lines, *(f"  {program}" for program in self.programs)])


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was tried in a guest; ``measured`` is None with ``refusal`` where the agent didn't start.

    ``short`` is what the kernel's files say of services that ran short, and what was measured of them.

    ``entries`` is how many the agent counted in a map with ENTRIES, ``counts_misses`` whether the kernel says how
    often it left a program out. ``ports`` are what the agent says the client holds towards each upstream, and its
    limit; ``sockets`` are those that /proc/net shows there.
    """

    kernel: str
    objects: list[ObjectReport]
    doctor: list[Feature]
    doctor_exit: int
    counted: Rows
    measured: Rows | None
    losses: dict[str, int]
    short: tuple[Shortage, Shortage] | None
    entries: int | None
    counts_misses: bool
    ports: dict[str, tuple[int, int | None]]
    sockets: dict[str, int]
    refusal: str = ""
    disk: DiskReport | None = None
