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
    HIERARCHY_MAX = 64


class DiskCgroup(IntEnum):
    KERNEL = 0
    NONE = 2147483646


class DiskLoss(IntEnum):
    ROWS_FULL = 0
    UNPLACED = 1
    UNTRACKED = 2
    END_UNSEEN = 3
    UNTIMED = 4
    BIOS = 5
    COUNT = 6


class DiskOperation(IntEnum):
    READ = 0
    WRITE = 1
    DISCARD = 2
    FLUSH = 3
    COUNT = 4


class Histogram(IntEnum):
    SUBSLOT_BITS = 3
    HANDSHAKE_SHIFT = 10
    HANDSHAKE_SLOTS = 200
    DURATION_SHIFT = 16
    DURATION_SLOTS = 240
    RTT_SHIFT = 10
    RTT_SLOTS = 184
    DISK_SHIFT = 10
    DISK_SLOTS = 200
    RESPONSE_SHIFT = 10
    RESPONSE_SLOTS = 184


class OomLimit(IntEnum):
    OOM_DEPTH = 10
    OOM_NAME_MAX = 96


class Pool(IntEnum):
    HEAD_MAX = 512


class PoolClass(IntEnum):
    INFORMATIONAL = 0
    SUCCESS = 1
    REDIRECTION = 2
    CLIENT_ERROR = 3
    SERVER_ERROR = 4
    COUNT = 5


class PoolEvidence(IntEnum):
    CONNECT = 0
    RESET = 1
    RESPONSE = 2
    SILENCE = 3
    COUNT = 4


class PoolLoss(IntEnum):
    EVENTS = 0
    ROWS = 1
    SOCKETS = 2
    UNREAD = 3
    COUNT = 4


class Ratelimit(IntEnum):
    BYTE_SHIFT = 16
    GUARD_SHIFT = 27


class RatelimitDimension(IntEnum):
    SYN = 0
    PACKETS = 1
    BYTES = 2
    COUNT = 3


class RatelimitListed(IntEnum):
    NOT = 0
    ALLOWED = 1
    DENIED = 2
    BANNED = 3


class RatelimitMode(IntEnum):
    OFF = 0
    MONITOR = 1
    ENFORCE = 2
    COUNT = 3


class RatelimitNote(IntEnum):
    GUARDED = 0
    CONTENDED = 1
    EXTENSIONS = 2
    FRAGMENTS = 3
    COUNT = 4


class RatelimitPolicyNumber(IntEnum):
    RATELIMIT_POLICY_NONE = 0
    RATELIMIT_POLICY_DEFAULT = 1
    RATELIMIT_POLICY_MAX = 64
    RATELIMIT_POLICY_PORTLESS = 65535


class RatelimitReason(IntEnum):
    NOT_IP = 0
    TRUNCATED = 1
    MALFORMED = 2
    VLANS = 3
    PROTOCOL = 4
    PORT = 5
    ALLOWED = 6
    WITHIN = 7
    DENIED = 8
    BANNED = 9
    SYN = 10
    PACKETS = 11
    BYTES = 12
    SYN_WIDE = 13
    PACKETS_WIDE = 14
    BYTES_WIDE = 15
    COUNT = 16


class RatelimitVerdict(IntEnum):
    PASS = 0
    DROP = 1
    WOULD_DROP = 2
    COUNT = 3


class RatelimitWidth(IntEnum):
    NARROW = 0
    WIDE = 1
    COUNT = 2


class TcpCgroup(IntEnum):
    KERNEL = 2147483647


class TcpCloser(IntEnum):
    LOCAL = 0
    REMOTE = 1
    TIMEOUT = 2
    COUNT = 3


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
    END_UNSEEN = 3
    RETRANSMITS_UNSEEN = 4
    PORTS_FULL = 5
    COUNT = 6


class TcpReset(IntEnum):
    SENT = 0
    RECEIVED = 1
    COUNT = 2


class TcpRetransmit(IntEnum):
    SYN = 0
    SYNACK = 1
    FAST = 2
    TIMEOUT = 3
    PROBE = 4
    COUNT = 5


class TcpRole(IntEnum):
    CLIENT = 0
    SERVER = 1
    COUNT = 2


class CgroupEvent(NamedTuple):
    id: int
    change: int
    hierarchy: int
    length: int
    path: bytes


CGROUP_EVENT = Struct("<QHHI1024s")
CGROUP_EVENT_PATH = Struct("<1024B")


class DiskCounts(NamedTuple):
    requests: int
    errors: int
    data_bytes: int
    io_ns: int
    queue_ns: int
    io: bytes
    queue: bytes


DISK_COUNTS = Struct("<QQQQQ800s800s")
DISK_COUNTS_IO = Struct("<200I")
DISK_COUNTS_QUEUE = Struct("<200I")


class DiskKey(NamedTuple):
    cgroup: int
    hierarchy: int
    disk: int
    device: int
    operation: int


DISK_KEY = Struct("<QIIII")


class DiskRequest(NamedTuple):
    issued_ns: int
    made_ns: int
    ended_ns: int
    unseen_ns: int
    last_ns: int
    key: bytes
    left: int
    pad: int


DISK_REQUEST = Struct("<QQQQQ24sII")


class FailfastEntry(NamedTuple):
    permits: int
    tried: int
    scope: int
    pad: int


FAILFAST_ENTRY = Struct("<IIII")


class FailfastService(NamedTuple):
    cgroup: int
    scope: int
    pad: int


FAILFAST_SERVICE = Struct("<QII")


class HttpCounts(NamedTuple):
    responses: bytes
    response_ns: int
    response: bytes


HTTP_COUNTS = Struct("<40sQ736s")
HTTP_COUNTS_RESPONSES = Struct("<5Q")
HTTP_COUNTS_RESPONSE = Struct("<184I")


class HttpKey(NamedTuple):
    cgroup: int
    endpoint: bytes


HTTP_KEY = Struct("<Q24s")


class OomEvent(NamedTuple):
    cgroup: int
    pid: int
    levels: int
    comm: bytes
    path: bytes


OOM_EVENT = Struct("<QII16s960s")
OOM_EVENT_COMM = Struct("<16B")
OOM_EVENT_PATH = Struct("<960B")


class PoolCounts(NamedTuple):
    connected: int
    answered: int
    refused: int
    is_encrypted: int
    generation: int


POOL_COUNTS = Struct("<QQQII")


class PoolEndpoint(NamedTuple):
    response_timeout_ns: int
    place: int
    generation: int


POOL_ENDPOINT = Struct("<QII")


class PoolEvent(NamedTuple):
    at_ns: int
    age_ns: int
    cgroup: int
    connected: int
    answered: int
    endpoint: bytes
    evidence: int
    code: int
    retransmits: int
    error: int
    source_port: int
    length: int
    pad: int
    head: bytes


POOL_EVENT = Struct("<QQQQQ24sIIIIHHI512s")
POOL_EVENT_HEAD = Struct("<512B")


class PoolKey(NamedTuple):
    address: bytes
    port: int
    family: int
    pad: int
    pad2: int


POOL_KEY = Struct("<16sHBBI")
POOL_KEY_ADDRESS = Struct("<4I")


class PortsHeld(NamedTuple):
    sockets: int
    closing: int


PORTS_HELD = Struct("<II")


class PortsKey(NamedTuple):
    cgroup: int
    source: bytes
    address: bytes
    netns: int
    port: int
    family: int
    pad: int


PORTS_KEY = Struct("<Q16s16sIHBB")
PORTS_KEY_SOURCE = Struct("<4I")
PORTS_KEY_ADDRESS = Struct("<4I")


class PortsListener(NamedTuple):
    backlog: int
    limit: int
    drops: int


PORTS_LISTENER = Struct("<IIQ")


class PortsListenerKey(NamedTuple):
    cgroup: int
    address: bytes
    port: int
    family: int
    pad: bytes


PORTS_LISTENER_KEY = Struct("<Q16sHB5s")
PORTS_LISTENER_KEY_ADDRESS = Struct("<4I")
PORTS_LISTENER_KEY_PAD = Struct("<5B")


class PortsNamespace(NamedTuple):
    read_ns: int
    low: int
    high: int
    reserved: int
    tw_reuse: int
    tw_reuse_delay_ms: int
    somaxconn: int
    time_wait: int


PORTS_NAMESPACE = Struct("<QHHIIIII")


class PortsWaiting(NamedTuple):
    sockets: int
    timestamped: int
    reusable: int
    pad: int


PORTS_WAITING = Struct("<IIII")


class RatelimitBan(NamedTuple):
    until_ns: int
    packets: int


RATELIMIT_BAN = Struct("<QQ")


class RatelimitCount(NamedTuple):
    packets: int
    bytes: int


RATELIMIT_COUNT = Struct("<QQ")


class RatelimitKey(NamedTuple):
    source: int
    policy: int
    family: int
    width: int
    pad: int


RATELIMIT_KEY = Struct("<QHBBI")


class RatelimitLimit(NamedTuple):
    cost: int
    tolerance_ns: int


RATELIMIT_LIMIT = Struct("<QQ")


class RatelimitPolicy(NamedTuple):
    limits: bytes


RATELIMIT_POLICY = Struct("<96s")


class RatelimitPorts(NamedTuple):
    tcp: bytes
    udp: bytes


RATELIMIT_PORTS = Struct("<4s4s")
RATELIMIT_PORTS_TCP = Struct("<4B")
RATELIMIT_PORTS_UDP = Struct("<4B")


class RatelimitPrefix(NamedTuple):
    length: int
    address: bytes


RATELIMIT_PREFIX = Struct("<I16s")
RATELIMIT_PREFIX_ADDRESS = Struct("<16B")


class RatelimitSimulation(NamedTuple):
    now_ns: int
    verdict: int
    reason: int


RATELIMIT_SIMULATION = Struct("<QII")


class RatelimitSource(NamedTuple):
    arrivals: bytes
    listed: int
    packets: int
    refused: int


RATELIMIT_SOURCE = Struct("<24sQQQ")
RATELIMIT_SOURCE_ARRIVALS = Struct("<3Q")


class RatelimitState(NamedTuple):
    mode: int
    slot: int
    generation: int
    divides: int
    lists: int
    lease_ns: int
    seed: int
    inserts: int
    sketch_mask: int
    own_only: int
    pad: int


RATELIMIT_STATE = Struct("<BBBBIQQIIII")


class TcpCounts(NamedTuple):
    connects: int
    established: int
    adopted: int
    closed: int
    failures: bytes
    closes: bytes
    retransmits: bytes
    resets: bytes
    sent_bytes: int
    received_bytes: int
    segments_sent: int
    segments_received: int
    exchanges: int
    handshake_ns: int
    duration_ns: int
    rtt_ns: int
    rtt_min_us: int
    netns: int
    handshake: bytes
    duration: bytes
    rtt: bytes


TCP_COUNTS = Struct("<QQQQ64s24s40s16sQQQQQQQQII800s960s736s")
TCP_COUNTS_FAILURES = Struct("<8Q")
TCP_COUNTS_CLOSES = Struct("<3Q")
TCP_COUNTS_RETRANSMITS = Struct("<5Q")
TCP_COUNTS_RESETS = Struct("<2Q")
TCP_COUNTS_HANDSHAKE = Struct("<200I")
TCP_COUNTS_DURATION = Struct("<240I")
TCP_COUNTS_RTT = Struct("<184I")


class TcpKey(NamedTuple):
    cgroup: int
    address: bytes
    port: int
    role: int
    family: int
    pad: int


TCP_KEY = Struct("<Q16sHBBI")
TCP_KEY_ADDRESS = Struct("<4I")
