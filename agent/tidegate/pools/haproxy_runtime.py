# SPDX-License-Identifier: Apache-2.0
"""HAProxy's Runtime API: commands over its ``stats socket``, and what its answers say; parsing is pure.

The formats are those of HAProxy 2.4 to 3.5 (its management guide, "Unix Socket commands").
"""

from __future__ import annotations

import csv
import ipaddress
import re
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from tidegate.config.units import Listen
from tidegate.errors import DriverError

TIMEOUT = 1.0
#: Some 25,000 servers; more is not a sane answer.
LARGEST = 16 << 20
#: A line must fit into HAProxy's buffer (tune.bufsize, 16384 by default).
_LONGEST_LINE = 2048
#: A full queue of its socket has room again after some seconds like these.
_QUEUED = 0.005

#: What HAProxy itself takes in a config. Anything else ends a word or a command on the socket, where a name with
#: ``;`` or a newline would write to other servers.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,256}")

# enum srv_admin of HAProxy's include/haproxy/server-t.h. 0x40 is no maintenance: the FQDN was changed.
_FORCED_MAINT, _INHERITED_MAINT, _FORCED_DRAIN, _INHERITED_DRAIN, _NO_ADDRESS = 0x01, 0x02, 0x08, 0x10, 0x20
#: Of enum srv_state: checks have failed, or they say that it is going (``disable-on-404``).
_STOPPED, _STOPPING = 0, 3
#: CHK_ST_ENABLED of include/haproxy/check-t.h.
_CHECK_ENABLED = 0x04

_STATE_VERSION = "1"
_STATE_COLUMNS = frozenset(
    {"be_id", "be_name", "srv_id", "srv_name", "srv_addr", "srv_port", "srv_fqdn"}
    | {"srv_op_state", "srv_admin_state", "srv_uweight", "srv_agent_state"}
)


class State(StrEnum):
    """What ``set server`` can make of a server."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


class Server(NamedTuple):
    """One server of a backend.

    ``endpoint`` is as the config writes it, empty where it has no address or no port. ``is_sound`` tells whether
    its name may be written to the socket, and means this server alone there.
    """

    name: str
    endpoint: str
    fqdn: str
    admin: int
    operation: int
    weight: int
    maxconn: int
    has_agent: bool
    is_sound: bool

    @property
    def state(self) -> State:
        """What somebody has set."""
        if self.admin & _FORCED_MAINT:
            return State.MAINT
        return State.DRAIN if self.admin & _FORCED_DRAIN else State.READY

    @property
    def is_passed_over(self) -> bool:
        """Whether it gets no requests although it is ready: as a server that it tracks, or by a weight of 0."""
        return bool(self.admin & (_INHERITED_MAINT | _INHERITED_DRAIN)) or not self.weight

    @property
    def has_failed(self) -> bool:
        """Whether HAProxy's own checks, or its questions for the address, have taken it out."""
        return bool(self.admin & _NO_ADDRESS) or self.operation in (_STOPPED, _STOPPING)


class Backend(NamedTuple):
    """A backend: its number, its servers, whether it has cookies, and the stick tables of all proxies."""

    number: int
    servers: tuple[Server, ...]
    has_cookies: bool
    tables: frozenset[str]


def is_name(text: str) -> bool:
    """Tell whether a name may be written to the socket."""
    return _NAME.fullmatch(text) is not None


def show_servers(backend: str) -> str:
    """Return the command whose answer has the backend's number; raises DriverError for what is no name."""
    return f"show servers state {_name('backend', backend)}"


def show_backend(backend: str, number: int) -> str:
    """Return the commands whose answer read_backend() reads.

    By its number: ``show stat NAME`` takes a name's leading digits for one, and the frontend of the same name for
    the backend.
    """
    return f"show table; {show_servers(backend)}; show stat {number:d} 6 -1"


def set_state(backend: str, server: str, state: State) -> str:
    """Return the command; raises DriverError for what is no name."""
    return f"set server {_name('backend', backend)}/{_name('server', server)} state {State(state)}"


def set_maxconn(backend: str, server: str, maxconn: int) -> str:
    """Return the command; raises DriverError for what is no name."""
    return f"set maxconn server {_name('backend', backend)}/{_name('server', server)} {maxconn:d}"


def _name(what: str, name: str) -> str:
    if not is_name(name):
        raise DriverError(
            f"haproxy: {what} {name!r:.80}: expected a name of letters, digits and _ . : -; it isn't written to; "
            "rename it in HAProxy's config"
        )
    return name


def lines(commands: Iterable[str]) -> list[str]:
    """Join commands to as few lines as HAProxy reads each at once."""
    found: list[str] = []
    for command in commands:
        if found and len(found[-1]) + len(command) + 2 <= _LONGEST_LINE:
            found[-1] += f"; {command}"
        else:
            found.append(command)
    return found


def exchange(path: str, command: str, timeout: float = TIMEOUT) -> str:
    """Send one line over a connection of its own, and return the answer.

    Raises DriverError, ``away`` where nobody listens, or the answer doesn't end within ``timeout`` seconds or ends
    early.
    """
    end = time.monotonic() + timeout
    answer = bytearray()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(timeout)
            _connect(connection, path, end)
            connection.sendall(command.encode("ascii") + b"\n")
            while len(answer) <= LARGEST:
                connection.settimeout(max(end - time.monotonic(), 0.001))
                more = connection.recv(1 << 18)
                if not more:
                    break
                answer += more
    except TimeoutError as error:
        raise _away(path, command, answer, f"nothing came within {timeout:g} s") from error
    except OSError as error:
        raise _away(path, command, answer, error.strerror or str(error)) from error
    text = answer.decode("utf-8", "replace")
    if len(answer) > LARGEST:
        message = f"haproxy {path}: {command!r}: expected at most {LARGEST >> 20} MiB, found more; name its socket"
        raise DriverError(message, exchanges=[(command, text[:1000])])
    # Each answer ends with an empty line; that of a command which succeeds silently is only that.
    if text != "\n" and not text.endswith("\n\n"):
        raise _away(path, command, answer, f"the answer broke off after {len(answer)} bytes")
    return text


def _connect(connection: socket.socket, path: str, end: float) -> None:
    """Connect, also where so many others do that its queue is full for the moment."""
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:
            if time.monotonic() >= end:
                raise
            time.sleep(_QUEUED)
        else:
            return


def _away(path: str, command: str, answer: bytearray, found: str) -> DriverError:
    return DriverError(
        f"haproxy {path}: {command!r:.200}: expected an answer, found: {found}; start HAProxy with 'stats socket "
        f"{path} level admin', and let the agent's user write to it",
        away=True,
        exchanges=[(command, answer[:1000].decode("utf-8", "replace"))],
    )


def said(text: str) -> str:
    """Return an answer on one line, for people."""
    found = " ".join(text.split())
    return (found if len(found) <= 200 else f"{found[:200]}...") or "nothing"


def info(text: str) -> dict[str, str]:
    """Read the answer to ``show info``."""
    pairs = (line.split(": ", 1) for line in text.splitlines() if ": " in line)
    found = {key: value.strip() for key, value in pairs}
    if found.get("Name") != "HAProxy" or not found.get("Version"):
        raise DriverError(f"expected the answer of HAProxy to 'show info', found: {said(text)}; name its socket")
    return found


def rows(csv_text: str) -> list[dict[str, str]]:
    """Read the answer to ``show stat``: one value by each column's name for each line.

    Raises DriverError where that isn't what stands there.
    """
    found = list(_records(csv_text))
    if not found or not found[0][0].startswith("# pxname"):
        raise DriverError(f"expected HAProxy's statistics as CSV, found: {said(csv_text)}; name its socket")
    header = [found[0][0].removeprefix("# "), *found[0][1:]]
    for record in found[1:]:
        if len(record) != len(header):
            raise DriverError(
                f"HAProxy's statistics: expected {len(header)} columns, found {len(record)}: "
                f"{said(','.join(record))}; name its socket"
            )
    return [dict(zip(header, record, strict=True)) for record in found[1:]]


def _records(csv_text: str) -> Iterable[list[str]]:
    try:
        # Not splitlines(): it also splits at what a server may have put into a check's text.
        yield from filter(None, csv.reader(csv_text.split("\n"), strict=True))
    except csv.Error as error:
        raise DriverError(f"HAProxy's statistics: expected CSV, found: {error}; name its socket") from error


def backend_number(text: str, backend: str) -> int:
    """Return the number of a backend from the answer to ``show servers state``."""
    number, _ = _states(text, backend)
    return number


def read_backend(text: str, backend: str) -> Backend | None:
    """Read the answers to show_backend().

    None where the statistics are of something else than the servers: it was reloaded, and numbers have changed.
    Raises DriverError where there is no such backend, or these aren't HAProxy's answers.
    """
    before, header, statistics = text.partition("# pxname,")
    number, states = _states(before, backend)
    if not header:
        raise DriverError(f"expected HAProxy's statistics, found: {said(text)}; name its socket")
    found = [row for row in rows(header + statistics) if row.get("iid") == str(number)]
    limits = {row.get("sid"): _number(row.get("slim") or "0") for row in found if row.get("type") == "2"}
    if any(state["srv_id"] not in limits for state in states):
        return None
    counts = Counter(state["srv_name"] for state in states)
    return Backend(
        number,
        tuple(_server(state, limits[state["srv_id"]], counts) for state in states),
        any(row.get("cookie") for row in found),
        frozenset(re.findall(r"^# table: ([^\s,]+)", before, re.MULTILINE)),
    )


def _states(text: str, backend: str) -> tuple[int, list[dict[str, str]]]:
    all_lines = text.split("\n")
    start = next((n for n, line in enumerate(all_lines) if line.startswith("# be_id ")), 0)
    if not start:
        if "Can't find backend" in text:
            raise DriverError(
                f"backend {backend}: expected HAProxy to have it, it says: Can't find backend; write its name as "
                "HAProxy's config does"
            )
        raise DriverError(
            f"backend {backend}: expected its servers, HAProxy said: {said(text)}; name the socket of a worker, "
            "'stats socket ... level admin'"
        )
    if all_lines[start - 1] != _STATE_VERSION:
        raise DriverError(
            f"backend {backend}: expected servers in format {_STATE_VERSION}, found {said(all_lines[start - 1])}; "
            "this HAProxy isn't known"
        )
    columns = all_lines[start].removeprefix("# ").split(" ")
    if missing := _STATE_COLUMNS.difference(columns):
        raise DriverError(
            f"backend {backend}: 'show servers state' lacks {', '.join(sorted(missing))}; HAProxy 2.4 has it"
        )
    states = []
    for line in all_lines[start + 1 :]:
        if not line:
            break
        values = line.split(" ")
        if len(values) != len(columns) or (state := dict(zip(columns, values, strict=True)))["be_name"] != backend:
            raise DriverError(
                f"backend {backend}: expected {len(columns)} values of one of its servers, found: {said(line)}; "
                "look at its names"
            )
        states.append(state)
    if not states:
        raise DriverError(
            f"backend {backend}: expected servers, HAProxy says that it has none; name another backend"
        )
    return _number(states[0]["be_id"]), states


def _server(state: dict[str, str], maxconn: int, counts: Mapping[str, int]) -> Server:
    name = state["srv_name"]
    return Server(
        name=name,
        endpoint=_endpoint(state["srv_addr"], _number(state["srv_port"])),
        fqdn=state["srv_fqdn"].removeprefix("-"),
        admin=_number(state["srv_admin_state"]),
        operation=_number(state["srv_op_state"]),
        weight=_number(state["srv_uweight"]),
        maxconn=maxconn,
        has_agent=bool(_number(state["srv_agent_state"]) & _CHECK_ENABLED),
        is_sound=is_name(name) and counts[name] == 1,
    )


def _endpoint(host: str, port: int) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return ""  # a Unix socket, or a name that isn't resolved
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(Listen(str(mapped or address), port)) if port else ""


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise DriverError(f"HAProxy's servers: expected a number, found {said(text)!r}; name its socket")
    return int(text)
