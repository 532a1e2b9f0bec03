# SPDX-License-Identifier: Apache-2.0
"""Programs and their versions, from files as compilers and packagers leave them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from tidegate.identity.executables import Executables, Program, program_of
from tidegate.identity.services import Service
from tidegate.model.resources import Executable

pytestmark = pytest.mark.unit
WEB = Service("web.service")
FAR = bytes(3 << 20)  # more than is read at a time


def go(version: bytes, flags: int = 2, segment: int = 0x2000) -> bytes:
    """Return an ELF file with a header, a segment of code, one of data, and Go's blob in the latter."""
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 2)
    code = struct.pack("<IIQ40x", 1, 5, 0)
    data = struct.pack("<IIQ40x", 1, 6, segment)
    blob = b"\xff Go buildinf:\x08" + bytes([flags]) + bytes(16) + bytes([len(version)]) + version
    return (head.ljust(64, b"\0") + code + data).ljust(segment, b"\0") + bytes(32) + blob


@pytest.mark.parametrize(
    ("name", "content", "program"),
    [
        ("nginx", b"x\0nginx version: nginx/1.30.2\0", Program("nginx", "1.30.2")),
        ("nginx", b"nginx version: openresty/1.25.3.1\0", Program("nginx", "1.25.3")),
        ("nginx-debug", FAR + b"nginx version: nginx/1.9.0 (b)", Program("nginx", "1.9.0")),
        ("nginx", bytes((1 << 20) - 20) + b"nginx version: nginx/1.30.2\0", Program("nginx", "1.30.2")),
        ("nginx", b"nginx version: Tengine/3.1.0\0", Program("nginx", None)),
        ("haproxy", b"\0 version 2.6.12-1+deb12u4, released 2026/10/17\0", Program("haproxy", "2.6.12")),
        ("haproxy", b"\0 version 3.3-dev5-a1b2c3, released 2026/10/17\0", Program("haproxy", "3.3-dev5")),
        ("envoy", b"\x001.3.1\0" + FAR + b"\x001.37.0\0x\x001.37.0\0", Program("envoy", "1.37.0")),
        ("envoy", b"\x001.58.0\0" + FAR + b"\x001.37.0\0", Program("envoy", None)),
        ("node", b"\0node.js/v20.20.2\0", Program("node", "20.20.2")),
        ("java", b"\x0017.0.15+6-Debian-1deb12u1\0", Program("java", "17.0.15")),
        ("java", b"\x001.8.0_382-b05\0", Program("java", "1.8.0_382")),
        ("php-fpm8.2", b"X-Powered-By: PHP/8.2.7\0", Program("php", "8.2.7")),
        ("python3.11", b"", Program("python", "3.11")),
        ("python", b"", Program("python", None)),
        ("ruby3.1", b"", Program("ruby", "3.1")),
        ("caddy", go(b"go1.23.8"), Program("go", "1.23.8")),
        ("traefik", go(b"devel go1.25-abc"), Program("go", "devel go1.25-abc")),
        ("old", go(b"go1.16", flags=0), Program("go", None)),
        ("bash", b"\x7fELF\x02\x01" + bytes(4096), Program("bash", None)),
        ("script", b"#!/bin/sh\n", Program("script", None)),
        ("empty", b"", Program("empty", None)),
        ("odd\nname", b"", Program("odd\\nname", None)),
    ],
)
def test_a_program_is_told_by_its_file(tmp_path: Path, name: str, content: bytes, program: Program) -> None:
    (tmp_path / "file").write_bytes(content)
    assert program_of(str(tmp_path / "file"), name) == program


@pytest.mark.parametrize("length", [0, 10, 63, 64, 100, 200, 0x2000, 0x2000 + 40, 0x2000 + 64])
def test_files_that_were_cut_off_are_no_error(tmp_path: Path, length: int) -> None:
    (tmp_path / "file").write_bytes(go(b"go1.23.8")[:length])
    assert program_of(str(tmp_path / "file"), "caddy").version is None


class Machine:
    """A made-up /proc and the processes of one cgroup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pids: list[int] = []

    def run(self, pid: int, file: str, content: bytes | None = b"") -> None:
        """Have a process run a file, of a container where its path isn't one of this machine; None: a thread."""
        (self.root / str(pid)).mkdir()
        (self.root / file).parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            (self.root / file).write_bytes(content)
            (self.root / str(pid) / "exe").symlink_to(self.root / file)
        self.pids.append(pid)

    def processes(self, path: str) -> list[int]:
        return self.pids if path == "/web" else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_programs_of_a_service_are_told_once_each(machine: Machine) -> None:
    for pid in (10, 11):
        machine.run(pid, "usr/sbin/nginx", b"nginx version: nginx/1.30.2\0")
    machine.run(12, "usr/bin/python3.11")
    machine.run(13, "kthread", None)
    found = Executables(machine.processes, machine.root)
    found.look({WEB: ["/other", "/web"]}, {WEB, Service("gone.service")}, 0.0)
    nginx = Executable(name="nginx", version="1.30.2", path=str(machine.root / "usr/sbin/nginx"))
    python = Executable(name="python", version="3.11", path=str(machine.root / "usr/bin/python3.11"))
    assert found.by_service == {WEB: (python, nginx)}
    assert found.skipped() == {"processes": 0}


def test_a_process_that_ends_meanwhile_is_skipped_and_counted(machine: Machine) -> None:
    machine.run(10, "usr/bin/python3.11")
    machine.pids.append(99)
    found = Executables(machine.processes, machine.root)
    found.look({WEB: ["/web"]}, {WEB}, 0.0)
    assert [each.name for each in found.by_service[WEB]] == ["python"]
    assert found.skipped() == {"processes": 1}


def test_services_are_looked_at_again_after_a_minute(machine: Machine) -> None:
    found = Executables(machine.processes, machine.root)
    services = {WEB: ["/web"]}
    for now, names in ((0.0, []), (59.0, []), (60.0, ["bash"])):
        if now == 59.0:
            machine.run(10, "bin/bash")
        found.look(services, {WEB}, now)
        assert [each.name for each in found.by_service[WEB]] == names


def test_a_file_that_was_replaced_is_read_again(machine: Machine) -> None:
    machine.run(10, "usr/sbin/nginx", b"nginx version: nginx/1.28.0\0")
    found = Executables(machine.processes, machine.root)
    found.look({WEB: ["/web"]}, {WEB}, 0.0)
    file = machine.root / "usr/sbin/nginx"
    file.write_bytes(b"nginx version: nginx/1.30.2\0")
    os.utime(file, ns=(0, 1))
    found.look({WEB: ["/web"]}, {WEB}, 60.0)
    assert [each.version for each in found.by_service[WEB]] == ["1.30.2"]


def test_only_some_files_are_read_at_a_time_and_none_is_left_out(machine: Machine) -> None:
    for pid in range(10, 20):
        machine.run(pid, f"bin/program{pid}")
    found = Executables(machine.processes, machine.root)
    counts = []
    for now in range(4):
        found.look({WEB: ["/web"]}, {WEB}, float(now))
        counts.append(len(found.by_service[WEB]))
    assert counts == [4, 8, 10, 10]


def test_what_is_no_longer_asked_for_is_forgotten(machine: Machine) -> None:
    machine.run(10, "bin/bash")
    found = Executables(machine.processes, machine.root)
    found.look({WEB: ["/web"]}, {WEB}, 0.0)
    found.look({WEB: ["/web"]}, set(), 1.0)
    assert found.by_service == {}
