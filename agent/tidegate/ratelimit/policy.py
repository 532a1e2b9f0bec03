# SPDX-License-Identifier: Apache-2.0
"""The limits of a config as the kernel's policies, which of them each port has, and the sizes of tables; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from tidegate.config.limits import Bucket, Buckets, ByteBucket, Limits, RateLimit
from tidegate.config.units import port_ranges
from tidegate.kernel.layouts import RATELIMIT_LIMIT, RATELIMIT_POLICY, Ratelimit, RatelimitPolicyNumber

_DEFAULT = RatelimitPolicyNumber.RATELIMIT_POLICY_DEFAULT
_MOST = RatelimitPolicyNumber.RATELIMIT_POLICY_MAX
_PORTS = 65536
#: Rows of the sketch (SKETCH_ROWS in bpf/include/ratelimit_tables.bpf.h).
SKETCH_ROWS = 4
_UNLIMITED = bytes(RATELIMIT_LIMIT.size)


class Compiled(NamedTuple):
    """One set for the kernel.

    ``policies`` is an array of RATELIMIT_POLICY_MAX ``struct ratelimit_policy``, ``ports`` one of 16,384
    ``struct ratelimit_ports``; ``names`` are the policies' by their number: ``default``, then the ports that
    each is for.
    """

    policies: bytes
    ports: bytes
    names: tuple[str, ...]


def compiled(rate_limit: RateLimit, listening_tcp: Collection[int], listening_udp: Collection[int]) -> Compiled:
    """Return what the kernel is to have in force.

    Only ports among ``listening_*`` or in ``rate_limit.listen`` get a policy: that of their own, else the default.
    """
    policies = [Limits(), rate_limit.default, *rate_limit.ports.values(), *rate_limit.udp.values()]
    further = [] if rate_limit.listen == "auto" else rate_limit.listen
    first_udp = _DEFAULT + 1 + len(rate_limit.ports)
    tcp = _numbers(rate_limit.ports, _DEFAULT + 1, listening_tcp, further)
    udp = _numbers(rate_limit.udp, first_udp, listening_udp, further)
    return Compiled(
        policies=b"".join(map(_policy, policies)).ljust(_MOST * RATELIMIT_POLICY.size, b"\0"),
        ports=_interleaved(tcp, udp),
        names=("", "default", *rate_limit.ports, *(f"udp {ports}" for ports in rate_limit.udp)),
    )


def sizes(rate_limit: RateLimit) -> dict[str, int]:
    """Return how many entries the maps have that are sized by the config."""
    return {
        "ratelimit_syns": rate_limit.max_sources,
        "ratelimit_sources": rate_limit.max_sources,
        "ratelimit_sketch": SKETCH_ROWS * rate_limit.sketch_cells,
        "ratelimit_allowed": rate_limit.max_prefixes,
        "ratelimit_denied": rate_limit.max_prefixes,
        "ratelimit_bans": rate_limit.max_bans,
    }


def limit_of(bucket: Bucket | ByteBucket | None) -> bytes:
    """Return a ``struct ratelimit_limit``; none: cost 0.

    The tolerance is the burst at the cost that the kernel reckons with, not at the exact one: else a burst could
    end one packet early.
    """
    if bucket is None:
        return _UNLIMITED
    scale = 1 << Ratelimit.BYTE_SHIFT if isinstance(bucket, ByteBucket) else 1
    cost = round(10**9 * scale / Fraction(bucket.rate))
    return RATELIMIT_LIMIT.pack(cost, bucket.burst * cost // scale)


def _policy(limits: Limits) -> bytes:
    return _dimensions(limits) + _dimensions(limits.wide)


def _dimensions(buckets: Buckets) -> bytes:
    """Return limits in the order of enum ratelimit_dimension."""
    return limit_of(buckets.syn) + limit_of(buckets.packets) + limit_of(buckets.bytes)


def _numbers(own: Mapping[str, Limits], first: int, listening: Iterable[int], further: Iterable[str]) -> bytearray:
    """Return the number of each port's policy, 0 where nobody listens."""
    numbers = bytearray(_PORTS)
    for port in listening:
        numbers[port] = _DEFAULT
    for ports in further:
        for some in port_ranges(ports):
            numbers[some.start : some.stop] = bytes([_DEFAULT]) * len(some)
    for number, ports in enumerate(own, first):
        instead = bytes.maketrans(bytes([_DEFAULT]), bytes([number]))
        for some in port_ranges(ports):
            numbers[some.start : some.stop] = numbers[some.start : some.stop].translate(instead)
    return numbers


def _interleaved(tcp: bytearray, udp: bytearray) -> bytes:
    """Return four ports of TCP, the same four of UDP, the next four of TCP, and so on."""
    table = bytearray(2 * _PORTS)
    for i in range(4):
        table[i::8] = tcp[i::4]
        table[4 + i :: 8] = udp[i::4]
    return bytes(table)
