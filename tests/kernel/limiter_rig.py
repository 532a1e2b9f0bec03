# SPDX-License-Identifier: Apache-2.0
"""The limiter's program under test: packets one by one at a time of the test's choice."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network

from tests.kernel.limiter_model import DIMENSIONS, Limit, Network, Policy
from tidegate.kernel.layouts import (
    RATELIMIT_SIMULATION,
    RatelimitMode,
    RatelimitReason,
    RatelimitVerdict,
)
from tidegate.kernel.libbpf import check, ffi, lib
from tidegate.kernel.limiter import LimiterMaps, counts, notes
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit.lists import divides, keys_of

SECOND = 10**9
#: XDP_DROP and XDP_PASS
_DROP, _PASS = 1, 2
_VERDICTS = {int(verdict): verdict.name.lower() for verdict in RatelimitVerdict}
_REASONS = {int(reason): reason.name.lower() for reason in RatelimitReason}
#: Reasons of packets that are never judged, whatever the policy.
UNJUDGED = ("not_ip", "truncated", "malformed", "vlans", "protocol", "port")


class Rig:
    """A loaded program that enforces, and its maps."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf, self.maps = bpf, LimiterMaps(bpf, 1)
        self.now = 1000 * SECOND
        self.maps.set_mode(RatelimitMode.ENFORCE, 0)
        self._program, self._clock = bpf.programs["ratelimit"].fd, bpf.maps["ratelimit_simulation"].fd
        self._zero, self._told = ffi.new("__u32 *"), ffi.new("char[]", RATELIMIT_SIMULATION.size)
        self._view = ffi.buffer(self._told)
        self._size, self._retval, self._duration = (ffi.new("__u32 *") for _ in range(3))

    def judge(self, frame: bytes) -> tuple[str, str]:
        """Return verdict and reason, now."""
        RATELIMIT_SIMULATION.pack_into(self._view, 0, self.now, 99, 99)
        check(lib.bpf_map_update_elem(self._clock, self._zero, self._told, 0), "clock")
        self._size[0] = 0
        ran = lib.tidegate_test_run(
            self._program, frame, len(frame), ffi.NULL, self._size, 1, self._retval, self._duration
        )
        check(ran, f"test run with {len(frame)} bytes")
        check(lib.bpf_map_lookup_elem(self._clock, self._zero, self._told), "verdict")
        _, verdict, reason = RATELIMIT_SIMULATION.unpack(self._view)
        assert self._retval[0] == (_DROP if verdict == RatelimitVerdict.DROP else _PASS)
        return _VERDICTS[verdict], _REASONS[reason]

    def reason(self, frame: bytes) -> str:
        """Return the reason alone, now."""
        return self.judge(frame)[1]

    def put(
        self, policies: Mapping[int, Policy], ports: Mapping[tuple[int, int], int], *, anew: bool = True
    ) -> None:
        """Put policies in force, by their number, and the numbers by (protocol, port)."""
        of_ports = bytearray(65536 * 2)
        for (protocol, port), number in ports.items():
            of_ports[port // 4 * 8 + (4 if protocol == 17 else 0) + port % 4] = number
        of_policies = b"".join(_packed(policies.get(number, Policy())) for number in range(64))
        self.maps.put_in_force(of_policies, bytes(of_ports), anew=anew)

    def lists(self, allowed: list[Network] | None = None, denied: list[Network] | None = None) -> None:
        """Replace both lists."""
        keys = [[key for network in some or [] for key in keys_of(str(network))] for some in (allowed, denied)]
        self.maps.set_lists(*keys, divides=divides(frozenset(keys[0] + keys[1])))

    def counted(self) -> dict[tuple[str, str], int]:
        """Return packets by (verdict, reason)."""
        return {key: count.packets for key, count in counts(self.bpf).items()}

    def noted(self, name: str) -> int:
        """Return what is noted of the tables."""
        return notes(self.bpf)[name]


def _packed(policy: Policy) -> bytes:
    none = Limit(0, 0)
    limits = [of.get(dimension, none) for of in (policy.narrow, policy.wide) for dimension in DIMENSIONS]
    return b"".join(struct.pack("<QQ", *limit) for limit in limits)


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """Run this thread, and with it the program, on one CPU: guards and counts are of each."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


@contextmanager
def rig(entries: int = 16_384, cells: int = 65_536) -> Iterator[Rig]:
    """Load the program with tables of so many sources, and a sketch of so many cells in a row; on one CPU."""
    with on_cpu(min(os.sched_getaffinity(0))), BpfObject.named("ratelimit_simulation") as bpf:
        bpf.resize({"ratelimit_syns": entries, "ratelimit_sources": entries, "ratelimit_sketch": 4 * cells})
        yield Rig(bpf.load())


def per_second(rate: int, burst: int) -> Limit:
    """Return a limit of SYNs or packets."""
    return Limit(SECOND // rate, burst * (SECOND // rate))


def bytes_per_second(rate: int, burst: int) -> Limit:
    """Return a limit of bytes."""
    cost = (SECOND << 16) // rate
    return Limit(cost, burst * cost >> 16)


def networks(*texts: str) -> list[Network]:
    """Return networks."""
    return [ip_network(text) for text in texts]
