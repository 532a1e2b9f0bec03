# SPDX-License-Identifier: Apache-2.0
"""The limiter at interfaces that come, go and are renamed; no packet is unjudged while it is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.kernel.test_xdp import PROGRAMS, pins, u32, wire
from tests.kernel.wire import PORT, Wire, index_of
from tidegate.errors import KernelError
from tidegate.kernel.layouts import (
    RATELIMIT_COUNT,
    RATELIMIT_STATE,
    RatelimitMode,
    RatelimitPolicyNumber,
    RatelimitReason,
    RatelimitState,
    RatelimitVerdict,
)
from tidegate.kernel.limiter import SHARED, LimiterMaps
from tidegate.kernel.maps import Map
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import LINK, PinDirectory
from tidegate.kernel.xdp import XdpAttachment, query
from tidegate.ratelimit import interfaces
from tidegate.ratelimit.instance import load
from tidegate.ratelimit.interfaces import Change, Interfaces, Step
from tidegate.ratelimit.keys import ban_key

__all__ = ["pins", "wire"]
pytestmark = pytest.mark.kernel
ENTRIES = {"ratelimit_syns": 1024, "ratelimit_sources": 1024, "ratelimit_sketch": 4 * 1024, "ratelimit_bans": 1024}
STATE = RatelimitState(
    mode=RatelimitMode.MONITOR,
    slot=0,
    generation=1,
    divides=0,
    lists=1,
    lease_ns=0,
    seed=1,
    inserts=1000,
    sketch_mask=1023,
    own_only=0,
    pad=0,
)


def judge_all(bpf: BpfObject) -> None:
    """Have every packet to the port of streams judged by a policy that limits nothing."""
    port = bytearray(8)
    port[4 + PORT % 4] = RatelimitPolicyNumber.RATELIMIT_POLICY_DEFAULT
    bpf.maps["ratelimit_ports_a"][u32(PORT // 4)] = bytes(port)
    bpf.maps["ratelimit_state"][u32(0)] = RATELIMIT_STATE.pack(*STATE)


def judged(counts: Map) -> int:
    """Return how many packets were judged and passed."""
    place = RatelimitVerdict.PASS * RatelimitReason.COUNT + RatelimitReason.WITHIN
    return sum(RATELIMIT_COUNT.unpack(value)[0] for value in counts.per_cpu(u32(place)))


@pytest.fixture
def follow(pins: PinDirectory) -> Iterator[Callable[..., Interfaces]]:
    opened: list[Interfaces] = []

    def begin(*patterns: str, generic: bool = False) -> Interfaces:
        found = Interfaces(
            patterns, pins, lambda index, _: load(pins, index, ENTRIES)[0], generic=generic, clock=lambda: now[0]
        )
        opened.append(found)
        return found

    yield begin
    for each in opened:
        each.uninstall()
        each.close()


now = [0.0]


def test_no_packet_is_unjudged_in_a_thousand_replacements(wire: Wire, pins: PinDirectory) -> None:
    index = index_of("tg0")
    first, second = load(pins, index, ENTRIES)[0], load(pins, index, ENTRIES)[0]
    third, shared = load(pins, index, ENTRIES)[0], load(pins, None, ENTRIES)[0]
    with first, second, third, shared:
        judge_all(shared)
        pin = pins.at_interface(index) / LINK
        with XdpAttachment.attach(first.programs["ratelimit"], index, pin, generic=False) as attached:
            with wire.stream() as stream:
                for turn in range(1000):
                    attached.replace((second, first)[turn % 2].programs["ratelimit"])
            assert stream.taken == stream.sent > 1000
            assert judged(third.maps["ratelimit_counts"]) == stream.sent
            attached.detach()


AGENT = """
import sys, time
from pathlib import Path
from tests.kernel.test_ratelimit_interfaces import ENTRIES, judge_all
from tidegate.kernel.pins import PinDirectory
from tidegate.ratelimit.instance import load
from tidegate.ratelimit.interfaces import Interfaces
pins = PinDirectory(Path(sys.argv[1]))
found = Interfaces(["tg*"], pins, lambda index, _: load(pins, index, ENTRIES)[0], generic=False)
judge_all(found.objects["tg0"])
print(found.attachments()[0].mode, flush=True)
time.sleep(300)
"""


def test_a_killed_agents_program_judges_until_the_next_one_replaces_it(
    wire: Wire, tmp_path: Path, follow: Callable[..., Interfaces], pins: PinDirectory
) -> None:
    index = index_of("tg0")
    pins.close()
    argv = wire.in_near(sys.executable, "-c", AGENT, str(pins.path))
    agent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROGRAMS.parents[1])
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "native\n"
        program = query(index).program
        with wire.stream() as stream:
            agent.send_signal(signal.SIGKILL)
            agent.wait(timeout=10)
            assert query(index).program == program
            with PinDirectory(tmp_path / "bpf" / "tidegate"):
                found = follow("tg*")
                assert query(index).program not in (0, program)
        assert stream.taken == stream.sent > 0
        assert judged(found.objects["tg0"].maps["ratelimit_counts"]) == stream.sent
        assert (
            RatelimitState(*RATELIMIT_STATE.unpack(found.objects["tg0"].maps["ratelimit_state"][u32(0)])) == STATE
        )
    finally:
        agent.kill()
        agent.wait()
        agent.stdout and agent.stdout.close()


def test_interfaces_are_followed(wire: Wire, follow: Callable[..., Interfaces]) -> None:
    found = follow("tg*", "eth*")
    first = index_of("tg0")
    program = query(first).program
    assert program
    assert [(each.interface, each.mode) for each in found.attachments()] == [("tg0", "native")]
    assert found.follow() == []
    wire.ip("link", "add", "eth7", "type", "veth", "peer", "name", "other")  # appears
    second = index_of("eth7")
    assert found.follow() == [Change(Step.ATTACH, second, "eth7")]
    wire.ip("link", "set", "tg0", "name", "tg9")  # is renamed, and still matches
    assert found.follow() == [Change(Step.RENAME, first, "tg9")]
    assert query(first).program == program
    assert [each.interface for each in found.attachments()] == ["eth7", "tg9"]
    wire.ip("link", "set", "tg9", "name", "lan0")  # and now does not
    assert found.follow() == [Change(Step.DETACH, first, "lan0")]
    assert query(first).program == 0
    wire.ip("link", "set", "lan0", "name", "tg0")
    assert found.follow() == [Change(Step.ATTACH, first, "tg0")]
    wire.ip("link", "del", "tg0")
    assert found.follow() == [Change(Step.DETACH, first, "tg0")]
    wire.connect()  # is made again
    third = index_of("tg0")
    assert found.follow() == [Change(Step.ATTACH, third, "tg0")]
    wire.ip("link", "del", "tg0")
    wire.connect(third)  # is made again before anybody has looked, under the same index
    assert query(third).program == 0
    assert found.follow() == [Change(Step.DETACH, third, "tg0"), Change(Step.ATTACH, third, "tg0")]
    assert query(third).mode == query(second).mode == "native"


def test_events_that_were_lost_are_events(wire: Wire, follow: Callable[..., Interfaces]) -> None:
    found = follow("tg*")
    for turn in range(400):  # more than the socket's buffer holds
        wire.ip("link", "set", "tg0", "mtu", str(1400 + turn % 2))
    assert dropped(found.events.fd) > 0
    wire.ip("link", "add", "tg5", "type", "veth", "peer", "name", "other")
    assert found.follow() == [Change(Step.ATTACH, index_of("tg5"), "tg5")]


def dropped(netlink: int) -> int:
    """Return how many messages found no place in a netlink socket, by the kernel's count."""
    inode = str(os.fstat(netlink).st_ino)
    rows = [line.split() for line in Path("/proc/thread-self/net/netlink").read_text().splitlines()]
    return next(int(row[8]) for row in rows if row[9] == inode)


def test_what_is_refused_is_said_and_tried_again(
    wire: Wire, follow: Callable[..., Interfaces], pins: PinDirectory
) -> None:
    wire.ip("link", "add", "tg8", "type", "bridge")
    index = index_of("tg0")
    with BpfObject(PROGRAMS) as other, other.load().programs["drop"].attach_xdp(index):
        found = follow("tg*")
        first, second = found.attachments()
        assert (first.interface, first.mode, second.interface, second.mode) == ("tg0", None, "tg8", None)
        assert "the XDP program 'drop' (id" in first.reason
        assert "Underlying driver does not support XDP in native mode" in second.reason
        assert pins.interfaces() == []
        assert found.follow() == []
    assert found.follow() == []
    now[0] += interfaces.RETRY
    assert found.follow() == [Change(Step.ATTACH, index, "tg0")]
    assert query(index).mode == "native"


def test_generic_mode_is_given_up_where_the_config_refuses_it_now(
    wire: Wire, follow: Callable[..., Interfaces]
) -> None:
    wire.ip("link", "add", "br0", "type", "bridge")
    with follow("br*", generic=True) as found:
        assert found.attachments()[0].mode == "generic"
    assert query(index_of("br0")).mode == "generic"
    assert follow("br*").attachments()[0].mode is None
    assert query(index_of("br0")).program == 0


@pytest.mark.usefixtures("wire")
def test_the_earlier_program_judges_on_where_the_new_one_does_not_load(
    follow: Callable[..., Interfaces], pins: PinDirectory
) -> None:
    index = index_of("tg0")
    follow("tg0").close()
    program = query(index).program

    def fail(_: int, __: str) -> BpfObject:
        raise KernelError("object ratelimit: load", 22)

    with Interfaces(["tg0"], pins, fail, generic=False) as found:
        assert found.attachments() == [("tg0", "native", "object ratelimit: load: Invalid argument (errno 22)")]
        assert query(index).program == program != 0


def test_stale_pins_and_those_that_match_no_more_are_removed(
    wire: Wire, follow: Callable[..., Interfaces], pins: PinDirectory
) -> None:
    wire.ip("link", "add", "eth7", "type", "veth", "peer", "name", "other")
    follow("tg0", "eth7").close()
    assert len(pins.interfaces()) == 2
    wire.ip("link", "del", "tg0")
    found = follow("tg*")
    assert (found.stale_pins, found.attachments(), pins.interfaces()) == (1, [], [])
    assert query(index_of("eth7")).program == 0


def test_buckets_outlive_the_agent_and_another_size_begins_anew(
    wire: Wire, pins: PinDirectory, follow: Callable[..., Interfaces]
) -> None:
    with follow("tg0") as found:
        judge_all(found.objects["tg0"])
        with wire.stream() as stream:
            pass
        before = entries(found.objects["tg0"].maps["ratelimit_sources"])
        assert [count for count, _, _ in found.objects["tg0"].maps["ratelimit_sources"].batches()] == [1]
    index = index_of("tg0")
    same, anew = load(pins, index, ENTRIES)
    with same:
        assert anew == []
        assert entries(same.maps["ratelimit_sources"]) == before
    with load(pins, index, {**ENTRIES, "ratelimit_sources": 2048})[0] as larger:
        assert entries(larger.maps["ratelimit_sources"]) == []
        assert RATELIMIT_STATE.unpack(larger.maps["ratelimit_state"][u32(0)]) == STATE
        with wire.stream() as more:  # is judged by the old map still
            pass
        assert entries(larger.maps["ratelimit_sources"]) == []
        assert judged(larger.maps["ratelimit_counts"]) == stream.sent + more.sent
        attached = XdpAttachment.open(pins.at_interface(index) / LINK)
        attached.replace(larger.programs["ratelimit"])
        attached.close()
        with wire.stream():
            pass
        assert len(entries(larger.maps["ratelimit_sources"])) == 1


def entries(table: Map) -> list[bytes]:
    return [bytes(values) for _, _, values in table.batches()]


def test_an_array_of_maps_goes_with_the_maps_in_it(wire: Wire, pins: PinDirectory) -> None:
    index = index_of("tg0")
    load(pins, index, ENTRIES)[0].close()
    (pins.path / "ratelimit_ports_a").unlink()
    bpf, anew = load(pins, index, ENTRIES)
    with bpf:
        assert anew == ["ratelimit_ports"]
        judge_all(bpf)
        pin = pins.at_interface(index) / LINK
        with XdpAttachment.attach(bpf.programs["ratelimit"], index, pin, generic=False) as attached:
            with wire.stream() as stream:
                pass
            assert judged(bpf.maps["ratelimit_counts"]) == stream.sent > 0
            attached.detach()


def test_bans_go_into_a_table_of_another_size(pins: PinDirectory) -> None:
    def sized(bans: int) -> tuple[LimiterMaps, BpfObject, list[str]]:
        bpf, anew = load(pins, None, ENTRIES | {"ratelimit_bans": bans})
        return LimiterMaps(bpf, 1), bpf, anew

    maps, bpf, anew = sized(1024)
    with bpf:
        assert anew == []
        banned = {ban_key(IPv4Address(n)): n for n in range(1, 101)}
        for key, until in banned.items():
            maps.ban(key, until)
    maps, bpf, anew = sized(2048)
    with bpf:
        assert anew == ["ratelimit_bans"]
        assert {key: ban.until_ns for key, ban in maps.bans().items()} == banned
        assert maps.ban_count() == 100
        assert sorted(maps.ended_bans(50)) == sorted(key for key, until in banned.items() if until <= 50)
    maps, bpf, anew = sized(64)
    with bpf:
        assert {key: ban.until_ns for key, ban in maps.bans().items()}.items() < banned.items()
        assert maps.ban_count() == 64


def test_uninstalling_leaves_nothing(wire: Wire, pins: PinDirectory, follow: Callable[..., Interfaces]) -> None:
    wire.ip("link", "add", "br0", "type", "bridge")
    found = follow("tg0", "br0", generic=True)
    programs = {query(index_of(device)).program for device in ("tg0", "br0")}
    maps = {name for name in SHARED if (pins.path / name).exists()}
    assert maps == set(SHARED)
    found.uninstall()
    pins.remove()
    assert query(index_of("tg0")) == query(index_of("br0")) == (0, "none")
    assert not pins.path.exists()
    assert not pins.path.parent.is_mount()
    found.close()
    loaded = subprocess.run(["bpftool", "prog"], capture_output=True, text=True, check=True).stdout
    assert not programs & {int(line.split(":")[0]) for line in loaded.splitlines() if line[:1].isdigit()}
    links = subprocess.run(["bpftool", "link"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in links.splitlines() if any(f"prog {number} " in line for number in programs)]
