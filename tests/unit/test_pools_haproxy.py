# SPDX-License-Identifier: Apache-2.0
"""What is done about the servers of an HAProxy backend, and what hostile names can't bring about."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.haproxy_answers import STATE_HEADER, STATISTICS, answering, picture
from tidegate.config.pools import HaproxyDriver as Config
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools.driver import Wanted
from tidegate.pools.haproxy import (
    Entry,
    HaproxyDriver,
    Setting,
    Step,
    ejects_by,
    plan,
    steps_of,
    use_of,
    warnings_of,
)
from tidegate.pools.haproxy_runtime import (
    Backend,
    Server,
    State,
    lines,
    read_backend,
    set_maxconn,
    set_state,
    show_servers,
)
from tidegate.pools.journal import Journal, Kept

pytestmark = pytest.mark.unit

ENDPOINTS = ("127.0.0.1:15001", "127.0.0.1:15002", "[::1]:15003")
CONFIG = Config(socket="/run/haproxy/admin.sock", backend="inventory")


def server(**changed: Any) -> Server:
    plain = Server("a", ENDPOINTS[0], "", 0, 2, 1, 0, False, True)
    return plain._replace(**changed)


def entry(told: Setting, previous: Setting | None = None, maxconn: int = 0) -> Entry:
    return Entry(ENDPOINTS[0], 0, 1, maxconn, told, previous)


# What is done.


@pytest.mark.parametrize(
    ("found", "known", "use"),
    [
        (server(), None, Use.ACTIVE),
        (server(operation=0), None, Use.FAILED),
        (server(operation=3), None, Use.FAILED),
        (server(admin=0x20), None, Use.FAILED),
        (server(admin=0x40), None, Use.ACTIVE),
        (server(admin=0x01), None, Use.HELD),
        (server(admin=0x05), None, Use.HELD),
        (server(admin=0x02), None, Use.HELD),
        (server(admin=0x08), None, Use.HELD),
        (server(admin=0x10), None, Use.HELD),
        (server(weight=0), None, Use.HELD),
        (server(admin=0x08), entry(Setting(State.DRAIN)), Use.EJECTED),
        (server(admin=0x08, operation=0), entry(Setting(State.DRAIN)), Use.EJECTED),
        (server(admin=0x08), entry(Setting(State.MAINT)), Use.HELD),
        (server(admin=0x01), entry(Setting(State.DRAIN)), Use.HELD),
        (server(admin=0x01), entry(Setting(State.MAINT)), Use.EJECTED),
        (server(), entry(Setting(State.DRAIN)), Use.ACTIVE),
        (server(maxconn=2), entry(Setting(State.READY, 2)), Use.TRIAL),
        (server(maxconn=2, operation=0), entry(Setting(State.READY, 2)), Use.FAILED),
        (server(maxconn=3), entry(Setting(State.READY, 2)), Use.ACTIVE),
        (server(maxconn=3), entry(Setting(State.READY)), Use.TRIAL),
        (server(admin=0x08), entry(Setting(State.READY, 2), Setting(State.DRAIN)), Use.EJECTED),
    ],
)
def test_whose_doing_it_is(found: Server, known: Entry | None, use: Use) -> None:
    assert use_of(found, known) is use


DRAIN, READY = "set server inventory/a state drain", "set server inventory/a state ready"


def limit(maxconn: int) -> str:
    return f"set maxconn server inventory/a {maxconn}"


@pytest.mark.parametrize(
    ("found", "known", "permits", "expected"),
    [
        # Ejected, and back.
        (server(maxconn=5), None, 0, Step((DRAIN,), entry(Setting(State.DRAIN), None, 5))),
        (
            server(admin=8),
            entry(Setting(State.DRAIN)),
            0,
            Step((), entry(Setting(State.DRAIN))),
        ),
        (server(admin=8), entry(Setting(State.DRAIN)), None, Step((READY,), None)),
        # The proxy has forgotten, and has another config by now.
        (server(maxconn=9), entry(Setting(State.DRAIN)), 0, Step((DRAIN,), entry(Setting(State.DRAIN), None, 9))),
        (server(maxconn=9), entry(Setting(State.DRAIN)), None, Step((), None)),
        # Half open: the limit is there before the requests, and gone after them.
        (
            server(admin=8),
            entry(Setting(State.DRAIN)),
            2,
            Step((limit(2), READY), entry(Setting(State.READY, 2), Setting(State.DRAIN))),
        ),
        (
            server(admin=8, maxconn=2),
            entry(Setting(State.DRAIN), None, 2),
            2,
            Step((READY,), entry(Setting(State.READY), Setting(State.DRAIN), 2)),
        ),
        (
            server(maxconn=2),
            entry(Setting(State.READY, 2), None, 7),
            0,
            Step((DRAIN, limit(7)), entry(Setting(State.DRAIN), Setting(State.READY, 2), 7)),
        ),
        (server(maxconn=2), entry(Setting(State.READY, 2), None, 7), None, Step((limit(7),), None)),
        (
            server(maxconn=2),
            entry(Setting(State.READY, 2), None, 7),
            3,
            Step((limit(3),), entry(Setting(State.READY, 3), Setting(State.READY, 2), 7)),
        ),
        # It wasn't known whether the last has arrived.
        (
            server(admin=8),
            entry(Setting(State.READY, 2), Setting(State.DRAIN)),
            2,
            Step((limit(2), READY), entry(Setting(State.READY, 2), Setting(State.DRAIN))),
        ),
        (server(admin=8), entry(Setting(State.READY, 2), Setting(State.DRAIN)), None, Step((READY,), None)),
        # An operator's: never undone, but for a limit of ours.
        (server(admin=1), None, 0, Step((), None)),
        (server(weight=0), None, 0, Step((), None)),
        (server(admin=1), entry(Setting(State.DRAIN)), 0, Step((), None)),
        (server(admin=1), entry(Setting(State.DRAIN)), None, Step((), None)),
        (server(admin=8, maxconn=2), entry(Setting(State.READY, 2), None, 7), 0, Step((limit(7),), None)),
        (server(maxconn=20), entry(Setting(State.READY, 2), None, 7), None, Step((), None)),
        (server(maxconn=2, weight=0), entry(Setting(State.READY, 2), None, 7), 0, Step((limit(7),), None)),
    ],
)
def test_the_commands_and_what_is_kept(
    found: Server, known: Entry | None, permits: int | None, expected: Step
) -> None:
    assert plan("inventory", found, known, permits, State.DRAIN) == expected


def test_servers_of_one_endpoint_share_the_permits() -> None:
    twice = Backend(3, (server(), server(name="b"), server(name="c", endpoint=ENDPOINTS[1])), False, frozenset())
    for permits, each in ((0, None), (1, 1), (5, 2)):
        steps = steps_of(twice, CONFIG, ENDPOINTS, {}, {ENDPOINTS[0]: permits})
        found = {name: step.entry.told.limit for name, step in steps.items() if step.entry is not None}
        assert found == {"a": each, "b": each}


def test_a_server_is_put_back_although_its_endpoint_is_of_the_pool_no_more() -> None:
    moved = Backend(3, (server(endpoint="10.9.9.9:1", admin=8),), False, frozenset())
    steps = steps_of(moved, CONFIG, ENDPOINTS, {"a": entry(Setting(State.DRAIN))}, {"10.9.9.9:1": 0})
    assert steps == {"a": Step((READY,), None)}


def test_a_bound_client_makes_it_maintenance() -> None:
    plain = Backend(3, (server(),), False, frozenset({"other"}))
    assert ejects_by(plain, CONFIG) is State.DRAIN
    assert ejects_by(plain._replace(has_cookies=True), CONFIG) is State.MAINT
    assert ejects_by(plain._replace(tables=frozenset({"inventory"})), CONFIG) is State.MAINT
    forced = Config(socket="/s", backend="inventory", eject="drain")
    assert ejects_by(plain._replace(has_cookies=True), forced) is State.DRAIN
    assert "'eject: maint'" in next(warnings_of(plain._replace(has_cookies=True), forced, ()))


def test_warnings() -> None:
    found = picture()
    strange = server(name="x;y", is_sound=False)
    warnings = list(warnings_of(found._replace(servers=(*found.servers, strange)), CONFIG, ["10.0.0.1:1"]))
    assert [warning for warning in warnings if "(st)" in warning]
    assert [warning for warning in warnings if warning.endswith("left alone: 'x;y'")]
    assert [warning for warning in warnings if "DNS" in warning and warning.endswith(": d, e")]
    assert [warning for warning in warnings if "agent-check" in warning and warning.endswith(": c")]
    assert "no server of the backend is at 10.0.0.1:1" in warnings


def test_a_refusal_is_told_with_the_exchange(tmp_path: Path) -> None:
    made = Config(socket=str(tmp_path / "s"), backend="inventory")
    kept = Journal(tmp_path / "j", Kept(pool="inventory", driver="haproxy", endpoints=ENDPOINTS, config={}))
    driver = HaproxyDriver(ENDPOINTS, made, kept)
    with answering(tmp_path / "s", b"Permission denied\n\n"), pytest.raises(DriverError) as caught:
        driver._take({"a": Step((DRAIN,), None)}, {})
    assert caught.value.exchanges == ((DRAIN, "Permission denied\n\n"),)
    assert "HAProxy said: Permission denied" in str(caught.value)
    assert not caught.value.away


def test_a_journal_of_something_else_is_an_error(tmp_path: Path) -> None:
    kept = Journal(tmp_path / "j", Kept(pool="inventory", driver="haproxy", endpoints=ENDPOINTS, config={}))
    kept.put({"a": "drained"})
    with pytest.raises(DriverError, match="its journal: expected what this program writes"):
        HaproxyDriver(ENDPOINTS, CONFIG, kept).apply({})


# What is hostile.

HOSTILE = st.text(
    st.sampled_from(list("ab0.:_-;\n\\ /#|<>\"'\r\t\0é,")) | st.characters(exclude_categories=["Cs"]), max_size=12
)
NAMES = HOSTILE | st.sampled_from(["a", "b", "a; disable server inventory/z", "a\nshutdown sessions server x/y"])
ADDRESSES = st.sampled_from([*ENDPOINTS, "", "10.6.6.6:1"]) | HOSTILE


@given(NAMES, NAMES, st.integers(0, 9))
@settings(max_examples=1000)
def test_a_command_is_of_two_names_or_none(backend: str, name: str, maxconn: int) -> None:
    both = all(re.fullmatch(r"[A-Za-z0-9_.:-]+", text) for text in (backend, name))
    for command, make in {
        f"set server {backend}/{name} state maint": partial(set_state, backend, name, State.MAINT),
        f"set maxconn server {backend}/{name} {maxconn}": partial(set_maxconn, backend, name, maxconn),
    }.items():
        if both:
            assert make() == command
        else:
            with pytest.raises(DriverError, match="expected a name of letters"):
                make()


@given(NAMES)
def test_nothing_is_asked_of_what_is_no_name(backend: str) -> None:
    try:
        assert show_servers(backend) == f"show servers state {backend}"
        assert re.fullmatch(r"[A-Za-z0-9_.:-]+", backend)
    except DriverError:
        pass


def servers_line(number: int, name: str, address: str, admin: int) -> str:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return f"3 inventory {number} {name} {host} 2 {admin} 1 1 1 1 0 2 0 0 0 0 - {port} - 0 0 - - 0"


REPORTED = st.lists(st.tuples(NAMES, ADDRESSES, st.sampled_from([0, 1, 8])), min_size=1, max_size=5)
ENTRIES = st.dictionaries(
    NAMES,
    st.sampled_from([entry(Setting(State.DRAIN)), entry(Setting(State.MAINT)), entry(Setting(State.READY, 1))]),
    max_size=3,
)


@given(REPORTED, ENTRIES, st.dictionaries(st.sampled_from(ENDPOINTS), st.integers(0, 3)))
@settings(max_examples=1000)
def test_whatever_is_reported_only_servers_of_the_pool_are_written_to(
    reported: list[tuple[str, str, int]], entries: Mapping[str, Entry], out: Wanted
) -> None:
    states = "\n".join(servers_line(number, *one) for number, one in enumerate(reported))
    statistics = "".join(f"inventory,x,,UP,3,{number},2,,,\n" for number in range(len(reported)))
    text = f"1\n{STATE_HEADER}\n{states}\n\n{STATISTICS.splitlines()[0]}\n{statistics}\n"
    try:
        backend = read_backend(text, "inventory")
    except DriverError:
        backend = None
    shown = tuple(
        server(
            name=name, endpoint=address, admin=admin, is_sound=re.fullmatch(r"[A-Za-z0-9_.:-]+", name) is not None
        )
        for name, address, admin in reported
    )
    for found in (backend, Backend(3, shown, False, frozenset())):
        if found is not None:
            check(found, entries, out)


def check(backend: Backend, entries: Mapping[str, Entry], out: Wanted) -> None:
    mine = {one.name for one in backend.servers if one.endpoint in ENDPOINTS or one.name in entries}
    steps = steps_of(backend, CONFIG, ENDPOINTS, entries, out)
    for line in lines("; ".join(step.commands) for step in steps.values() if step.commands):
        for command in line.split("; "):
            matched = re.fullmatch(
                r"set (?:server|maxconn server) inventory/([A-Za-z0-9_.:-]+) (?:state (?:drain|ready)|[0-9]+)",
                command,
            )
            assert matched, command
            assert matched[1] in mine
