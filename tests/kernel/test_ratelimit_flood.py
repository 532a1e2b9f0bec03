# SPDX-License-Identifier: Apache-2.0
"""The limiter under load: spoofed sources that would push good ones out, and two CPUs at one bucket."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kernel.limiter_model import Policy
from tests.kernel.limiter_rig import SECOND, Rig, on_cpu, per_second, rig
from tests.kernel.test_ratelimit_policy import packet
from tidegate.config.limits import Bucket, Limits, RateLimit
from tidegate.kernel.layouts import RatelimitMode
from tidegate.kernel.limiter import LimiterMaps, counts, notes
from tidegate.kernel.objects import BpfObject
from tidegate.ratelimit.policy import compiled

pytestmark = pytest.mark.kernel

PORT = 443
POLICY = {1: Policy({"syn": per_second(10, 20), "packets": per_second(10, 20)})}
GOOD, SPOOFED = 1000, 200_000
#: A spoofed packet each 25 us: 40,000 a second for five seconds.
APART = 25_000


def good(number: int, *, syn: bool) -> bytes:
    return packet(f"10.1.{number >> 8}.{number & 255}", PORT, syn=syn)


def newcomer(number: int, *, syn: bool) -> bytes:
    return packet(f"10.2.{number >> 8}.{number & 255}", PORT, syn=syn)


def spoofed(number: int, *, syn: bool) -> bytes:
    """Return packets of ever other sources in an order without sense."""
    mixed = number * 0x9E3779B1 & 0xFFFFFF
    return packet(f"172.{mixed >> 16}.{mixed >> 8 & 255}.{mixed & 255}", PORT, syn=syn)


def flood(opened: Rig, *, syn: bool) -> tuple[Counter[str], Counter[str]]:
    """Send the flood; return the reasons of 1,000 good sources that send on, and of 200 that come meanwhile.

    A good source sends once in half a second, a fifth of what it may; one that comes sends 21 at once, all it may.
    """
    known, new = Counter[str](), Counter[str]()
    for n in range(SPOOFED):
        opened.now += APART
        opened.judge(spoofed(n, syn=syn))
        if n % 20 == 0:
            known[opened.reason(good(n // 20 % GOOD, syn=syn))] += 1
        if n % 1000 == 999:
            new.update(opened.reason(newcomer(n // 1000, syn=syn)) for _ in range(21))
    return known, new


@pytest.mark.parametrize("syn", [True, False], ids=["SYNs", "packets"])
def test_spoofed_sources_push_no_good_one_out(syn: bool) -> None:
    with rig(entries=8192) as opened:
        opened.put(POLICY, {(6, PORT): 1})
        for n in range(GOOD):
            opened.now += 5_000_000
            assert opened.reason(good(n, syn=syn)) == "within"
        assert opened.noted("guarded") == 0
        known, new = flood(opened, syn=syn)
        assert known == {"within": SPOOFED // 20}
        assert new == {"within": SPOOFED // 1000 * 21}
        assert opened.noted("guarded") > SPOOFED * 9 // 10
        table = opened.maps.requesting() if syn else opened.maps.sources()
        entries = {key.source.to_bytes(8, "little")[:4]: source for key, source in table}
        remembered = [entries.get(bytes([10, 1, n >> 8, n & 255])) for n in range(GOOD)]
        # Each with all its packets: the entry of before the flood, and not one that was made again.
        assert [entry and (entry.packets, entry.refused) for entry in remembered] == [
            (1 + SPOOFED // 20 // GOOD, 0)
        ] * GOOD
        other = opened.maps.sources() if syn else opened.maps.requesting()
        assert list(other) == []  # of the table that is not flooded


def test_who_finds_no_place_is_held_to_the_limit_all_the_same() -> None:
    with rig(entries=8192) as opened:
        opened.put(POLICY, {(6, PORT): 1})
        for n in range(1000):
            opened.judge(spoofed(n, syn=True))
        guarded = opened.noted("guarded")
        told = Counter(opened.reason(newcomer(7, syn=True)) for _ in range(100))
        assert opened.noted("guarded") == guarded + 100
        assert told == {"within": 21, "syn": 79}
        # What the sketch knows of it goes with it into the table.
        opened.now += SECOND // 10
        for n in range(1000, 1000 + 50):
            opened.judge(spoofed(n, syn=True))
        opened.now += SECOND // 10
        told = Counter(opened.reason(newcomer(7, syn=True)) for _ in range(100))
        assert told == {"within": 2, "syn": 98}
        sources = {key.source.to_bytes(8, "little")[:4]: source for key, source in opened.maps.requesting()}
        assert sources[bytes([10, 2, 0, 7])].refused == 98


def test_another_cpu_with_room_knows_what_the_sketch_knows() -> None:
    """What a source used while it was left to the sketch is not forgotten where another CPU lets it in."""
    other = sorted(os.sched_getaffinity(0))[1]
    with rig(entries=8192) as opened:
        opened.put(POLICY, {(6, PORT): 1})
        for n in range(1000):
            opened.judge(spoofed(n, syn=True))
        guarded = opened.noted("guarded")
        assert Counter(opened.reason(newcomer(7, syn=True)) for _ in range(30)) == {"within": 21, "syn": 9}
        assert opened.noted("guarded") == guarded + 30
        with on_cpu(other):
            assert Counter(opened.reason(newcomer(7, syn=True)) for _ in range(30)) == {"syn": 30}
        assert opened.noted("guarded") == guarded + 30


def test_a_sketch_without_room_refuses_no_more_than_what_it_holds() -> None:
    """One cell a row is everybody's: then who is not in the table shares one bucket, and who is in it does not."""
    with rig(entries=8192, cells=1) as opened:
        opened.put(POLICY, {(6, PORT): 1})
        assert opened.reason(good(1, syn=True)) == "within"
        told = Counter(opened.reason(spoofed(n, syn=True)) for n in range(1000))
        let_in = len(list(opened.maps.requesting())) - 1
        assert told == {"within": let_in + 21, "syn": 1000 - let_in - 21}
        assert [opened.reason(good(1, syn=True)) for _ in range(21)] == ["within"] * 20 + ["syn"]


def test_sources_of_one_policy_make_no_room_for_those_of_another() -> None:
    """Cells are shared: what is far ahead for one policy is not taken for a clock that was set back by another."""
    other = 80
    with rig(entries=8192, cells=1024) as opened:
        slow = Policy({"packets": per_second(1, 1000)})
        opened.put({1: slow, 2: Policy({"packets": per_second(1000, 1)})}, {(6, PORT): 1, (6, other): 2})
        for n in range(1000):
            opened.judge(spoofed(n, syn=False))
        told = Counter(opened.reason(newcomer(7, syn=False)) for _ in range(1100))
        assert told["packets"] >= 99
        for n in range(20_000):
            opened.judge(packet(f"10.3.{n >> 8}.{n & 255}", other, syn=False))
        assert opened.reason(newcomer(7, syn=False)) == "packets"


RATE, BURST, RUNS = 100_000, 50_000, 4_000_000


def test_two_cpus_share_one_bucket() -> None:
    """Real time, real contention: what is let through is the limit, to within two in a hundred."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    assert len(cpus) == 2, "needs two CPUs"
    made = compiled(RateLimit(default=Limits(packets=Bucket(rate=RATE, burst=BURST))), {PORT}, ())
    with BpfObject.named("ratelimit") as bpf:
        bpf.load()
        maps = LimiterMaps(bpf, 2)
        maps.put_in_force(made.policies, made.ports, anew=True)
        maps.set_mode(RatelimitMode.ENFORCE, 0)
        frame, program = packet("198.51.100.7", PORT, syn=False), bpf.programs["ratelimit"]
        ready = threading.Barrier(2)

        def hammer(cpu: int) -> tuple[int, int, int]:
            """Return when it began and ended, and how long of that the program ran."""
            os.sched_setaffinity(0, {cpu})  # of this thread
            ready.wait()
            begun = time.monotonic_ns()
            ran = program.test_run(frame, repeat=RUNS).duration_ns * RUNS
            return begun, time.monotonic_ns(), ran

        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(hammer, cpus))
        found = {key: count.packets for key, count in counts(bpf).items()}
        assert found["pass", "within"] + found["drop", "packets"] == 2 * RUNS
        # The kernel prepares each run and cleans up after it: the packets' time is between these.
        least = BURST + 1 + RATE * max(ran for *_, ran in runs) / SECOND
        most = BURST + 1 + RATE * (max(end for _, end, _ in runs) - min(begun for begun, *_ in runs)) / SECOND
        assert 0.98 * least < found["pass", "within"] < 1.02 * most
        assert 3 * most < 2 * RUNS
        assert notes(bpf)["contended"] < least / 100
