# SPDX-License-Identifier: Apache-2.0
"""Labs for the tests: made for one module, gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lab.lab import Lab

#: ICMP errors without the kernel's rate limits, so that every refused connect gets one.
ICMP = {"net.ipv4.icmp_ratelimit": "0", "net.ipv6.icmp.ratelimit": "0"}


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(f"-{os.getpid()}") as opened:
        yield opened
