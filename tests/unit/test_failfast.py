# SPDX-License-Identifier: Apache-2.0
"""What of the failfast driver needs no kernel."""

from __future__ import annotations

import pytest

from tidegate.pools.failfast import says_eperm

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("release", "old"),
    [("5.10.0-43-cloud-amd64", True), ("5.17.99", True), ("5.18-rc1", False), ("6.1.0", False), ("6", False)],
)
def test_kernels_before_5_18_say_eperm(release: str, old: bool) -> None:
    assert says_eperm(release) is old
