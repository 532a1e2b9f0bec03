# SPDX-License-Identifier: Apache-2.0
"""Generated from bpf/include by bpf/generate_layouts.py: don't edit, run 'make layouts'."""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple


class CgroupChange(IntEnum):
    MADE = 0
    REMOVED = 1


class CgroupLimit(IntEnum):
    CGROUP_PATH_MAX = 1024


class Histogram(IntEnum):
    SUBSLOT_BITS = 3
    SLOTS = 200
    HANDSHAKE_SHIFT = 10


class TcpFailure(IntEnum):
    REFUSED = 0
    TIMEOUT = 1
    UNREACHABLE = 2
    PORTS_EXHAUSTED = 3
    RESET = 4
    ABORTED = 5
    DENIED = 6
    OTHER = 7
    COUNT = 8


class TcpLoss(IntEnum):
    ROWS_FULL = 0
    UNTRACKED = 1
    LATE = 2
    COUNT = 3


class TcpRole(IntEnum):
    CLIENT = 0
    SERVER = 1
    COUNT = 2


class CgroupEvent(NamedTuple):
    id: int
    change: int
    length: int
    path: bytes


CGROUP_EVENT = Struct("<QII1024s")
CGROUP_EVENT_PATH = Struct("<1024B")


class TcpCounts(NamedTuple):
    connects: int
    established: int
    closed: int
    failures: bytes
    handshake_ns: int
    handshake: bytes


TCP_COUNTS = Struct("<QQQ64sQ800s")
TCP_COUNTS_FAILURES = Struct("<8Q")
TCP_COUNTS_HANDSHAKE = Struct("<200I")


class TcpKey(NamedTuple):
    cgroup: int
    address: bytes
    port: int
    role: int
    family: int
    pad: int


TCP_KEY = Struct("<Q16sHBBI")
TCP_KEY_ADDRESS = Struct("<4I")
