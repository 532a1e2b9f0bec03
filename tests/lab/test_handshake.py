# SPDX-License-Identifier: Apache-2.0
"""Handshake percentiles against the generator's own clock."""

from __future__ import annotations

import pytest

from lab.lab import Lab
from lab.results import Plan, Step
from lab.upstream import Behaviour
from tests.lab.agreement import LabMeasurement, assert_client_agrees, rows
from tidegate.measurement import Bounds
from tidegate.model.fields import Role

pytestmark = pytest.mark.lab
LOW, HIGH, COUNT = 0.004, 0.060, 400


@pytest.mark.parametrize("address", ["10.9.0.6", "fd09::6"])
def test_percentiles_are_within_ten_percent_of_the_generators_clock(lab: Lab, address: str) -> None:
    inventory, client = lab.host("inventory", 6), lab.host("client", 16)
    inventory.service("inventory_service").upstream({5000: Behaviour.ACCEPT})
    lab.slow_path(inventory, client, LOW, HIGH)
    shop = client.service("shop")
    with LabMeasurement(lab, Bounds()) as measurement:
        counted = shop.generate(Plan((Step(address, 5000, COUNT),), parallel=8))
        view = measurement.measure()
        assert_client_agrees(view, "shop.service", counted)
        ((endpoint, row),) = rows(view, "shop.service", Role.CLIENT).items()
        truth = sorted(counted.endpoints[endpoint].handshakes)
        assert row.handshake is not None
        assert 2 * LOW < truth[0] < truth[-1] < 2 * HIGH + 0.1
        assert row.handshake.p50 == pytest.approx(truth[COUNT // 2 - 1], rel=0.1)
        assert row.handshake.p90 == pytest.approx(truth[COUNT * 9 // 10 - 1], rel=0.1)
        assert row.handshake.p99 == pytest.approx(truth[COUNT * 99 // 100 - 1], rel=0.1)
        assert row.handshake.sum == pytest.approx(sum(truth), rel=0.1)
