# SPDX-License-Identifier: Apache-2.0
"""A measurement with its advice, of one lab's services alone: other traffic of the machine goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Self

import msgspec

from lab.lab import Lab
from tidegate.advisor import Advisor
from tidegate.measurement import Bounds, Measurement
from tidegate.model.finding import Finding
from tidegate.model.limits import Advice, Residency
from tidegate.model.snapshot import View

#: Each measurement is judged, and findings go a second after their reason has gone. What is said of the machine
#: and of the agent may be true here whatever the lab does.
QUICK = Advice(interval=0.0, hold=1.0, ignore=("cpu_steal", "agent_losses"))


class AdvisedLab:
    """Measures and judges on demand; a context manager. ``services`` and ``devices`` count as the lab's too."""

    def __init__(
        self,
        lab: Lab,
        *,
        bounds: Bounds | None = None,
        advice: Advice = QUICK,
        locations: Mapping[str, str] | None = None,
        residency: Residency | None = None,
        services: Collection[str] = (),
        devices: Collection[str] = (),
    ) -> None:
        self._services, self._devices = services, devices
        self._tag = f"{lab.tag}.service"
        self._measurement = Measurement(bounds or Bounds(), locations=locations)
        self._advisor = Advisor(advice, residency or Residency())
        self.measure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._measurement.close()

    def measure(self) -> View:
        """Measure once and judge."""
        view = self._measurement.measure()
        tables = ("endpoints", "ports", "listeners", "resources", "service_disks")
        changes = {table: self._own(getattr(view, table)) for table in tables}
        namespaces = view.namespaces and tuple(
            row for row in view.namespaces if any(name.endswith(self._tag) for name in row.services)
        )
        disks = view.disks and tuple(row for row in view.disks if row.device in self._devices)
        return self._advisor.judge(msgspec.structs.replace(view, **changes, namespaces=namespaces, disks=disks))

    def findings(self, view: View) -> list[tuple[str, str]]:
        """Return what was found: ids and subjects, without the lab's tag."""
        return [(f.id, f.subject.replace(self._tag, ".service")) for f in view.findings or ()]

    def after(self, seconds: float) -> View:
        """Measure each second for a while and return the last view."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            view = self.measure()
        return view

    def until(self, done: Callable[[View], bool], what: str, deadline: float = 30.0) -> View:
        """Measure until a condition holds."""
        end = time.monotonic() + deadline
        while not done(view := self.measure()):
            assert time.monotonic() < end, f"not {what} after {deadline} s: {self.findings(view)}"
            time.sleep(0.2)
        return view

    def one(self, view: View, id_: str) -> Finding:
        """Return the only finding, which must be of a kind."""
        (finding,) = view.findings or ()
        assert finding.id == id_, self.findings(view)
        return finding

    def _own(self, rows: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return rows and tuple(
            row for row in rows if row.service.endswith(self._tag) or row.service in self._services
        )
