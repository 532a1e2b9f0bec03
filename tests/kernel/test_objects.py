# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_histogram import slot_of
from tidegate.errors import KernelError, UnavailableError
from tidegate.kernel.maps import ANY, EXIST, NOEXIST, Map, RingBuffer
from tidegate.kernel.objects import BpfObject, Link
from tidegate.kernel.probe import probe

pytestmark = pytest.mark.kernel
PROGRAMS = Path(__file__).parents[2] / "build/programs.bpf.o"
XDP_DROP, XDP_PASS = 1, 2
PACKET = bytes(64)


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


@pytest.fixture
def bpf() -> Iterator[BpfObject]:
    with BpfObject(PROGRAMS) as opened:
        yield opened


@pytest.fixture
def loaded(bpf: BpfObject) -> BpfObject:
    return bpf.load()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A bpffs of the test's own: not every machine has one at /sys/fs/bpf."""
    subprocess.run(["mount", "-t", "bpf", "bpf", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_constant_is_set_before_load(bpf: BpfObject) -> None:
    bpf.set_constant("verdict", u32(XDP_DROP))
    bpf.load()
    assert bpf.programs["answer"].test_run(PACKET).retval == XDP_DROP


def test_constant_of_another_size_or_name_is_refused(bpf: BpfObject) -> None:
    with pytest.raises(ValueError, match="no constant verdict of 8 bytes"):
        bpf.set_constant("verdict", u64(1))
    with pytest.raises(ValueError, match="no constant nothing"):
        bpf.set_constant("nothing", u32(1))


def test_run_returns_packet_and_duration(loaded: BpfObject) -> None:
    result = loaded.programs["answer"].test_run(PACKET, repeat=1000)
    assert (result.retval, result.data) == (XDP_PASS, PACKET)
    assert result.duration_ns < 100_000


def test_run_with_a_frame_below_ethernets_header_is_an_error(loaded: BpfObject) -> None:
    with pytest.raises(KernelError, match="program answer: test run with 4 bytes") as caught:
        loaded.programs["answer"].test_run(bytes(4))
    assert caught.value.errno == errno.EINVAL


def test_kernels_histogram_slots_are_those_of_the_agent(loaded: BpfObject) -> None:
    values = {0, 1, 1023, 1024, (1 << 37) - 1}
    for power in range(10, 37):
        values |= {(1 << power) + (eighth << power >> 3) + off for eighth in range(8) for off in (-1, 0, 1)}
    for value in sorted(values):
        found = loaded.programs["slot"].test_run(u64(value) + bytes(8)).retval
        assert found == slot_of(value), value
    for value in (1 << 37, 1 << 50, (1 << 64) - 1):
        assert loaded.programs["slot"].test_run(u64(value) + bytes(8)).retval == 199


def test_map_elements(loaded: BpfObject) -> None:
    numbers = loaded.maps["numbers"]
    numbers[u32(1)] = u64(10)
    assert numbers[u32(1)] == u64(10)
    numbers.update(u32(1), u64(11), EXIST)
    with pytest.raises(KernelError) as caught:
        numbers.update(u32(1), u64(12), NOEXIST)
    assert caught.value.errno == errno.EEXIST
    assert numbers.take(u32(1)) == u64(11)
    for access in (lambda: numbers[u32(1)], lambda: numbers.take(u32(1)), lambda: numbers.__delitem__(u32(1))):
        with pytest.raises(KeyError):
            access()
    with pytest.raises(ValueError, match="key has 4 bytes"):
        numbers[u64(1)]
    with pytest.raises(ValueError, match="value has 8 bytes"):
        numbers.update(u32(1), u32(1), ANY)


@pytest.mark.parametrize("entries", [0, 1, 100, 9999])
@pytest.mark.parametrize("delete", [False, True])
def test_batches_give_every_element_once(loaded: BpfObject, entries: int, delete: bool) -> None:
    numbers = loaded.maps["numbers"]
    for n in range(entries):
        numbers[u32(n)] = u64(n * n)
    found: list[tuple[int, int]] = []
    for count, keys, values in numbers.batches(512, delete=delete):
        pairs = zip(struct.iter_unpack("<I", keys), struct.iter_unpack("<Q", values), strict=True)
        batch = [(k, v) for (k,), (v,) in pairs]
        assert len(batch) == count
        found += batch
    assert sorted(found) == [(n, n * n) for n in range(entries)]
    left = sum(count for count, _, _ in numbers.batches())
    assert left == (0 if delete else entries)


def test_map_sizes_that_differ_from_the_layouts_are_refused(bpf: BpfObject) -> None:
    with pytest.raises(UnavailableError, match=r"map numbers: the agent expects .* \(4, 16\).*\(4, 8\)"):
        bpf.load({"numbers": (4, 16)})


def test_map_size_is_set_before_load(bpf: BpfObject) -> None:
    bpf.set_max_entries("numbers", 3)
    numbers = bpf.load().maps["numbers"]
    for n in range(3):
        numbers[u32(n)] = u64(n)
    with pytest.raises(KernelError) as caught:
        numbers[u32(3)] = u64(3)
    assert caught.value.errno == errno.E2BIG


def test_map_memory_is_reported(loaded: BpfObject) -> None:
    memory = loaded.maps["numbers"].memory()
    assert memory is not None
    assert memory > 10_000 * 12


def test_ring_accounts_for_every_record(loaded: BpfObject) -> None:
    ring = RingBuffer(loaded.maps["ring"])
    failed = sum(loaded.programs["to_ring"].test_run(u64(n) + bytes(8)).retval for n in range(500))
    records = ring.consume()
    assert failed > 0
    assert len(records) + failed == 500
    assert records == [u64(n) for n in range(len(records))]
    assert ring.consume() == []
    ring.close()
    ring.close()


def test_cgroup_program_denies_and_closing_the_link_allows_again(bpf: BpfObject) -> None:
    cgroup2 = probe().cgroup2
    assert cgroup2 is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        bpf.set_constant("denied_port", u64(port))
        bpf.load()
        with bpf.programs["deny"].attach_cgroup(Path(cgroup2)), pytest.raises(PermissionError):
            socket.create_connection(("127.0.0.1", port))
        assert bpf.variable("denials") == 1
        socket.create_connection(("127.0.0.1", port)).close()
    assert bpf.variable("denials") == 1


def test_iterator_walks_sockets(loaded: BpfObject) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, loaded.programs["ports"].attach_iterator() as link:
        ports = [port for (port,) in struct.iter_unpack("<H", link.read())]
        assert ports.count(server.getsockname()[1]) == 1


def test_xdp_link_is_pinned_updated_and_found_again(loaded: BpfObject, bpffs: Path) -> None:
    loopback = socket.if_nametoindex("lo")
    with loaded.programs["answer"].attach_xdp(loopback) as link:
        link.update(loaded.programs["drop"])
        link.update(loaded.programs["answer"])
        link.pin(str(bpffs / "xdp"))
    with pytest.raises(KernelError, match="attach to interface") as caught:  # the pin holds it
        loaded.programs["drop"].attach_xdp(loopback)
    assert caught.value.errno == errno.EBUSY
    found = Link.open(str(bpffs / "xdp"))
    (bpffs / "xdp").unlink()
    found.close()
    loaded.programs["answer"].attach_xdp(loopback).close()


def test_map_is_pinned(loaded: BpfObject, bpffs: Path) -> None:
    loaded.maps["numbers"].pin(str(bpffs / "numbers"))
    assert (bpffs / "numbers").exists()


def test_program_info_counts(loaded: BpfObject) -> None:
    info = loaded.programs["answer"].info()
    assert info.id > 0
    assert info.recursion_misses == 0


def test_verifiers_reason_is_quoted() -> None:
    refused = BpfObject(PROGRAMS.with_name("refused.bpf.o"))
    with refused, pytest.raises(KernelError, match="object refused: load: Permission denied") as caught:
        refused.load()
    assert any("invalid access to packet" in line for line in caught.value.log)


def test_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.bpf.o"
    garbage.write_bytes(b"\x7fELF" + bytes(200))
    with pytest.raises(KernelError, match="object garbage: open"):
        BpfObject(garbage)


def test_missing_object_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="run 'make setup'"):
        BpfObject(tmp_path / "none.bpf.o")


def test_closing_twice_is_harmless() -> None:
    bpf = BpfObject(PROGRAMS).load()
    bpf.close()
    bpf.close()


@pytest.mark.parametrize("weighed", [True, False])
def test_entries_of_a_growing_map_are_counted(loaded: BpfObject, weighed: bool) -> None:
    growing = loaded.maps["growing"]
    counted = growing if weighed else Map(growing._pointer)  # unweighed: as kernels before 6.4 leave it
    for n in range(3000):
        growing[u32(n)] = u64(n)
    assert counted.entries() == 3000
    if weighed:
        for n in range(1, 3000):
            del growing[u32(n)]
        assert growing.entries() == 1
    assert loaded.maps["numbers"].entries() is None


def test_weighing_leaves_nothing_in_a_map(loaded: BpfObject) -> None:
    assert list(loaded.maps["growing"].batches()) == []
