# SPDX-License-Identifier: Apache-2.0
"""What all tests share: who may run where, and that a skip is a failure where everything must run."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# How long an example takes says more of the machine, which is shared, than of the code.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")

EVERYTHING = os.environ.get("TIDEGATE_TESTS") == "all"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs root where there is none."""
    if os.geteuid() and any(item.get_closest_marker(name) for name in ("kernel", "lab", "vm")):
        pytest.skip("loads BPF programs or makes network namespaces: run as root")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With TIDEGATE_TESTS=all, turn a skip into a failure."""
    report = yield
    if EVERYTHING and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but TIDEGATE_TESTS=all: {report.longrepr}"
    return report
