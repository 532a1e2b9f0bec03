# SPDX-License-Identifier: Apache-2.0
"""How a kernel is chosen and kept, what an archive holds, how a console is read."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from tests.vm.initramfs import Archive
from tests.vm.kernels import DESCRIPTION, KEYRING, Kernel, kept, newest_first, sha256, sources
from tests.vm.machine import GuestError, parse
from tests.vm.report import MARKER, ObjectReport, ProgramReport, Report
from tests.vm.traffic import Count

pytestmark = pytest.mark.unit


def test_sources_are_those_of_the_machine_with_another_release() -> None:
    targets = [
        "http://mirror.example/debian/ bookworm",
        "http://mirror.example/debian/ bookworm",  # once for each component
        "http://mirror.example/debian/ bookworm-updates",
        "http://mirror.example/security/ bookworm-security",
        "http://vendor.example/apt/ cloud-sdk-bookworm",
        "http://vendor.example/node/ nodistro",
    ]
    assert sources(targets, "bookworm", "bullseye").splitlines() == [
        f"deb [signed-by={KEYRING}] http://mirror.example/debian/ bullseye main",
        f"deb [signed-by={KEYRING}] http://mirror.example/debian/ bullseye-updates main",
        f"deb [signed-by={KEYRING}] http://mirror.example/security/ bullseye-security main",
    ]


def test_newest_kernel_is_by_number_and_of_the_release_itself() -> None:
    packages = [
        "linux-image-6.1.0-9-cloud-amd64-unsigned",
        "linux-image-6.1.0-10-cloud-amd64-unsigned",
        "linux-image-6.1.0-11-cloud-amd64",
        "linux-image-6.1.0-12-cloud-amd64-dbg",
        "linux-image-6.1.0-0.deb11.25-cloud-amd64-unsigned",
        "linux-image-6.12.117+deb12-cloud-amd64-unsigned",
        "linux-image-5.10.0-46-cloud-amd64-unsigned",
    ]
    assert newest_first(packages, "6.1") == [packages[1], packages[0]]
    assert newest_first(packages, "5.1") == []


def test_kept_kernel_is_taken_only_whole(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"kernel")
    description = Kernel("linux-image", "1", image.name, sha256(image))
    (tmp_path / DESCRIPTION).write_bytes(msgspec.json.encode(description))
    assert kept(tmp_path) == image
    image.write_bytes(b"kern")
    assert kept(tmp_path) is None
    (tmp_path / DESCRIPTION).write_bytes(b"{")
    assert kept(tmp_path) is None


def test_archive_has_each_folder_before_what_it_holds() -> None:
    output = io.BytesIO()
    archive = Archive(output)
    archive.file("/a/b/one", b"12345", 0o755, mtime=7)
    archive.file("/a/two", b"", 0o644)
    archive.device("/dev/console", 5, 1)
    archive.end()
    assert members(output.getvalue()) == [
        ("a", 0o40755, 0, b""),
        ("a/b", 0o40755, 0, b""),
        ("a/b/one", 0o100755, 7, b"12345"),
        ("a/two", 0o100644, 0, b""),
        ("dev", 0o40755, 0, b""),
        ("dev/console", 0o20600, 0, b""),
        ("TRAILER!!!", 0, 0, b""),
    ]


def members(data: bytes) -> list[tuple[str, int, int, bytes]]:
    """Read an archive back as (path, mode, mtime, content); everything begins at a multiple of four."""
    found, at = [], 0
    while at < len(data):
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, name_size = fields[1], fields[5], fields[6], fields[11]
        name = data[at + 110 : at + 109 + name_size].decode()
        at += -(-(110 + name_size) // 4) * 4
        found.append((name, mode, mtime, data[at : at + size]))
        at += -(-size // 4) * 4
    return found


def test_report_is_found_among_the_kernels_messages() -> None:
    report = Report(
        kernel="6.1",
        objects=[ObjectReport("tcp", True, [ProgramReport("state", "tp_btf/x", True, True)])],
        doctor=[],
        doctor_exit=0,
        counted={"a client b": Count(1, 1)},
        measured=None,
        losses={},
        short=None,
        entries=None,
        counts_misses=False,
        ports={},
        sockets={},
        refusal="no",
    )
    line = MARKER + msgspec.json.encode(report).decode()
    assert parse("", f"[ 1.0] booted\n{line}\n[ 2.0] Power down\n") == report


@pytest.mark.parametrize("console", ["", "[ 1.0] Kernel panic", f"x{MARKER}{{}}", f"{MARKER}{{"])
def test_console_without_a_whole_report_is_an_error_that_quotes_it(console: str) -> None:
    with pytest.raises(GuestError) as caught:
        parse("vmlinuz: powered off", console)
    assert str(caught.value) == f"vmlinuz: powered off; the end of its console:\n{console}"


def test_object_shows_which_program_was_refused_and_why() -> None:
    refused = ObjectReport(
        "tcp",
        False,
        [
            ProgramReport("walk", "iter/tcp", False, False, "helper call is not allowed"),
            ProgramReport("state", "tp_btf/x", True, True),
            ProgramReport("odd", "syscall", True, False, "no such attachment"),
        ],
        "object tcp: load: Invalid argument",
    )
    assert not refused.works
    assert str(refused).splitlines() == [
        "object tcp: load: Invalid argument",
        "  walk (iter/tcp): refused: helper call is not allowed",
        "  state (tp_btf/x): attached",
        "  odd (syscall): loaded, not attached: no such attachment",
    ]
