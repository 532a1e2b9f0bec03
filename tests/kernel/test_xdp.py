# SPDX-License-Identifier: Apache-2.0
"""XDP at real interfaces of namespaces: native and generic, pinned, replaced, shared maps, nothing left."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.wire import Wire, index_of
from tidegate.errors import TidegateError
from tidegate.kernel.ethernet import facts_of
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import LINK, PinDirectory
from tidegate.kernel.xdp import ForeignProgramError, GoneError, NotNativeError, XdpAttachment, query

pytestmark = pytest.mark.kernel
PROGRAMS = Path(__file__).parents[2] / "build/programs.bpf.o"


def u32(n: int) -> bytes:
    return struct.pack("<I", n)


def u64(n: int) -> bytes:
    return struct.pack("<Q", n)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as opened:
        yield opened


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[PinDirectory]:
    with PinDirectory(tmp_path / "bpf" / "tidegate") as opened:
        yield opened
        if opened.path.exists():
            opened.remove()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


@pytest.fixture
def bpf() -> Iterator[BpfObject]:
    with BpfObject(PROGRAMS) as opened:
        yield opened.load()


def attach(
    bpf: BpfObject, device: str, pins: PinDirectory, program: str = "answer", *, generic: bool = False
) -> XdpAttachment:
    index = index_of(device)
    return XdpAttachment.attach(bpf.programs[program], index, pins.at_interface(index) / LINK, generic=generic)


@pytest.mark.usefixtures("wire")
def test_a_veth_runs_it_natively(pins: PinDirectory, bpf: BpfObject) -> None:
    index = index_of("tg0")
    attached = attach(bpf, "tg0", pins)
    assert (attached.mode, attached.reason, attached.ifindex) == ("native", "", index)
    assert query(index) == (bpf.programs["answer"].info().id, "native")
    attached.detach()
    assert query(index) == (0, "none")
    assert not (pins.at_interface(index) / LINK).exists()


def test_a_driver_without_native_xdp_is_refused_or_generic(wire: Wire, pins: PinDirectory, bpf: BpfObject) -> None:
    wire.ip("link", "add", "br0", "type", "bridge")
    index = index_of("br0")
    with pytest.raises(NotNativeError) as refused:
        attach(bpf, "br0", pins)
    assert "interface br0: the limiter can't run in the driver: Underlying driver does not support XDP" in str(
        refused.value
    )
    assert "driver bridge, MTU 1500" in str(refused.value)
    assert "rate_limit.generic to allow" in str(refused.value)
    assert query(index).program == 0
    with attach(bpf, "br0", pins, generic=True) as attached:
        assert attached.mode == query(index).mode == "generic"
        assert attached.reason.startswith("Underlying driver does not support XDP in native mode; driver bridge")
    with XdpAttachment.open(pins.at_interface(index) / LINK) as found:
        assert (found.mode, found.ifindex) == ("generic", index)
        assert found.reason == "attached so by an earlier start of the agent; driver bridge, MTU 1500, LRO off"
        found.detach()


def test_too_large_an_mtu_is_named(wire: Wire, pins: PinDirectory, bpf: BpfObject) -> None:
    wire.ip_far("link", "set", "tg1", "mtu", "9000")
    with pytest.raises(NotNativeError, match="Peer MTU is too large to set XDP; driver veth") as refused:
        attach(bpf, "tg0", pins, "small")
    assert "a smaller MTU: ip link set dev tg0 mtu N" in str(refused.value)
    attach(bpf, "tg0", pins).detach()  # with frags it goes


def test_too_few_queues_are_named(pins: PinDirectory, bpf: BpfObject) -> None:
    with Wire(queues=(1, 2)):
        assert facts_of("tg0") == ("tg0", "veth", 1, 1, 1500, False)
        with pytest.raises(NotNativeError, match="number of rx queues") as refused:
            attach(bpf, "tg0", pins)
        assert "1 of at most 1 queues" in str(refused.value)
        assert "ethtool -L tg0" in str(refused.value)


def test_a_foreign_program_is_refused_by_name_and_id(wire: Wire, pins: PinDirectory, bpf: BpfObject) -> None:
    index = index_of("tg0")
    with BpfObject(PROGRAMS) as other:
        drop = other.load().programs["drop"]
        with drop.attach_xdp(index):
            with pytest.raises(ForeignProgramError) as refused:
                attach(bpf, "tg0", pins, generic=True)
            assert f"interface tg0: the XDP program 'drop' (id {drop.info().id}) is attached" in str(refused.value)
            assert "take tg0 out of rate_limit.interfaces" in str(refused.value)
            assert query(index).program == drop.info().id
            # Its name takes a privilege that the agent may not have.
            refuse = (
                "from tidegate.kernel.xdp import refuse_foreign, ForeignProgramError\n"
                f"try: refuse_foreign({index}, 'tg0')\n"
                "except ForeignProgramError as error: print(error)"
            )
            unprivileged = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"]
            argv = wire.in_near(*unprivileged, sys.executable, "-c", refuse)
            said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
            assert f"the XDP program of id {drop.info().id} (no CAP_SYS_ADMIN: no name) is attached" in said
    attach(bpf, "tg0", pins).detach()


def test_an_interface_that_is_gone_is_said_to_be(wire: Wire, pins: PinDirectory, bpf: BpfObject) -> None:
    index = index_of("tg0")
    attached = attach(bpf, "tg0", pins)
    wire.ip("link", "del", "tg0")
    assert attached.ifindex == 0
    with pytest.raises(GoneError):
        attached.replace(bpf.programs["drop"])
    with pytest.raises(GoneError):
        XdpAttachment.open(attached.pin)
    with pytest.raises(GoneError):
        XdpAttachment.attach(bpf.programs["answer"], index, attached.pin, generic=True)
    attached.detach()
    assert not attached.pin.exists()


def test_an_interface_in_another_namespace_is_not_mistaken(wire: Wire, pins: PinDirectory, bpf: BpfObject) -> None:
    index = index_of("tg0")
    attached = attach(bpf, "tg0", pins)
    wire.move("tg0")
    wire.ip("link", "add", "index", str(index), "name", "tg0", "type", "bridge")
    with pytest.raises(GoneError, match="in another network namespace"):
        XdpAttachment.open(attached.pin)
    attached.detach()


def test_another_agent_is_refused(pins: PinDirectory) -> None:
    script = (
        "import sys; from pathlib import Path; from tidegate.kernel.pins import PinDirectory\n"
        "from tidegate.errors import TidegateError\n"
        "try: PinDirectory(Path(sys.argv[1]))\n"
        "except TidegateError as error: print(error)"
    )
    argv = [sys.executable, "-c", script, str(pins.path)]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    assert said.startswith(f"pins {pins.path}: another agent limits rates on this node, pid {os.getpid()}; ")


def test_a_directory_that_was_given_up_is_free(tmp_path: Path) -> None:
    path = tmp_path / "bpf" / "tidegate"
    PinDirectory(path).close()
    with PinDirectory(path) as pins:
        pins.remove()


def test_pins_are_for_root_alone_in_a_bpffs_that_goes_with_them(tmp_path: Path) -> None:
    path = tmp_path / "bpf" / "tidegate"
    with PinDirectory(path) as pins:
        assert pins.mounted
        assert path.stat().st_mode & 0o777 == path.parent.stat().st_mode & 0o777 == 0o700
        path.chmod(0o755)
    with PinDirectory(path) as pins:
        assert not pins.mounted
        assert path.stat().st_mode & 0o777 == 0o700
        (path.parent / "another").mkdir()
        pins.remove()
        assert path.parent.is_mount()  # somebody else's pins are in it
    (path.parent / "another").rmdir()
    with PinDirectory(path) as pins:
        pins.remove()
    assert not path.parent.is_mount()


def test_a_place_that_can_not_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bpf").write_text("")
    with pytest.raises(TidegateError, match="expected a directory in bpffs"):
        PinDirectory(tmp_path / "bpf" / "tidegate")


def test_pinned_maps_are_shared_with_their_content(pins: PinDirectory) -> None:
    with BpfObject(PROGRAMS) as first, BpfObject(PROGRAMS) as second:
        assert first.pin_maps(pins.path, ["numbers"]) == []
        first.load().maps["numbers"][u32(1)] = u64(10)
        assert second.pin_maps(pins.path, ["numbers"]) == []
        assert second.load().maps["numbers"][u32(1)] == u64(10)
    with BpfObject(PROGRAMS) as third:
        assert third.pin_maps(pins.path, ["numbers"]) == []
        assert third.load().maps["numbers"][u32(1)] == u64(10)


def test_a_pinned_map_of_another_size_is_set_aside(pins: PinDirectory) -> None:
    with BpfObject(PROGRAMS) as old, BpfObject(PROGRAMS) as new:
        old.pin_maps(pins.path, ["numbers", "growing"])
        old.load().maps["numbers"][u32(1)] = u64(10)
        old.maps["growing"][u32(1)] = u64(10)
        new.set_max_entries("numbers", 20)
        assert new.pin_maps(pins.path, ["numbers", "growing"]) == ["numbers"]
        new.load()
        assert new.maps["numbers"].max_entries == 20
        with pytest.raises(KeyError):
            new.maps["numbers"][u32(1)]
        assert old.maps["numbers"][u32(1)] == u64(10)
        assert new.maps["growing"][u32(1)] == u64(10)
