# SPDX-License-Identifier: Apache-2.0
"""Comparing what the agent measured with what the lab's processes counted themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Self, TypeVar

import msgspec

from lab.lab import Lab
from lab.results import Results
from tidegate.measurement import Bounds, Measurement
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, ServiceRow, View

Row = TypeVar("Row", EndpointRow, ServiceRow)


def rows(view: View, service: str, role: Role) -> dict[str, EndpointRow]:
    """Return a service's rows of one role by endpoint."""
    return {row.endpoint: row for row in view.endpoints if (row.service, row.role) == (service, role)}


class LabMeasurement:
    """A measurement that shows one lab's services alone, by their names without the lab's tag.

    What found no place in a row (``other``) is shown too. Other traffic of the machine goes on meanwhile.
    """

    def __init__(self, lab: Lab, bounds: Bounds) -> None:
        self._ending = f"{lab.tag}.service"
        self._measurement = Measurement(bounds)
        #: Rows of services that are not the lab's, which take room as well.
        self.foreign = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._measurement.close()

    def measure(self) -> View:
        """Measure once."""
        view = self._measurement.measure()
        endpoints = tuple(self._own(row) for row in view.endpoints if self._is_own(row.service))
        self.foreign = sum(not self._is_own(row.service) for row in view.endpoints)
        services = tuple(self._own(row) for row in view.services if self._is_own(row.service))
        return msgspec.structs.replace(view, endpoints=endpoints, services=services)

    def _is_own(self, service: str) -> bool:
        return service == "other" or service.endswith(self._ending)

    def _own(self, row: Row) -> Row:
        return msgspec.structs.replace(row, service=row.service.replace(self._ending, ".service"))


def measure_until(measurement: LabMeasurement, done: Callable[[View], bool], deadline: float = 20.0) -> View:
    """Measure until a condition holds: the kernel closes the last sockets after the application has."""
    end = time.monotonic() + deadline
    while not done(view := measurement.measure()):
        assert time.monotonic() < end, f"the condition doesn't hold after {deadline} s: {view.endpoints}"
        time.sleep(0.02)
    return view


def settled(view: View) -> bool:
    """Tell whether every connection that the agent saw has ended."""
    return all(row.open == 0 for row in view.endpoints)


def assert_client_agrees(view: View, service: str, counted: Results) -> None:
    """Compare every counter of a client, exactly."""
    found = rows(view, service, Role.CLIENT)
    assert set(found) == set(counted.endpoints)
    measured = {
        endpoint: (row.connects, row.established, {reason: n for reason, n in (row.failures or {}).items() if n})
        for endpoint, row in found.items()
    }
    assert measured == {e: (r.connects, r.established, r.failures()) for e, r in counted.endpoints.items()}
    for endpoint, row in found.items():
        assert row.handshake is not None
        assert row.handshake.count == counted.endpoints[endpoint].established


def assert_server_agrees(view: View, service: str, accepted: Mapping[int, int]) -> None:
    """Compare the accepts of a server, exactly."""
    found = rows(view, service, Role.SERVER)
    assert {endpoint: row.accepts for endpoint, row in found.items()} == {f":{p}": n for p, n in accepted.items()}
