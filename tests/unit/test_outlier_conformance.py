# SPDX-License-Identifier: Apache-2.0
"""The engine against Envoy's semantics: numbered scenarios, each a script and the decisions that it leads to."""

from __future__ import annotations

import pytest

from tests.unit.outlier_detections import DETECTIONS
from tests.unit.outlier_ejections import EJECTIONS
from tests.unit.outlier_run import Scenario

pytestmark = pytest.mark.unit
SCENARIOS = [*DETECTIONS, *EJECTIONS]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: f"{s.number}: {s.words}")
def test_conformance(scenario: Scenario) -> None:
    run = scenario.run()
    assert run.said == scenario.decisions
    assert scenario.check(run)


def test_every_scenario_has_its_number_once() -> None:
    listed = {*range(1, 51)} - {8, 33, 34, 40, 43}
    assert [scenario.number for scenario in SCENARIOS] == sorted(listed)
