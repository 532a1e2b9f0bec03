# SPDX-License-Identifier: Apache-2.0
"""Boots a kernel with a root file system in an emulated machine and returns what the guest reports."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from tests.vm.report import MARKER, Report

QEMU = "qemu-system-x86_64"
DEADLINE = 120.0
_SHOWN = 80

# Emulation, as a host may itself be a guest without a working /dev/kvm. Two CPUs, so that what is counted per
# CPU and what is moved between them is put to the test.
_MACHINE = ("-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "768")
_DEVICES = ("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio")
_COMMAND_LINE = "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on"


class GuestError(Exception):
    """A guest hung, died or sent no report; quotes the end of its console."""

    def __init__(self, what: str, console: str) -> None:
        lines = "\n".join(console.splitlines()[-_SHOWN:])
        super().__init__(f"{what}; the end of its console:\n{lines}")


def boot(kernel: Path, initramfs: Path, disk: Path | None = None, deadline: float = DEADLINE) -> Report:
    """Boot, wait until the guest powers off, and read its report; ``deadline`` in seconds.

    ``disk`` is the image of an NVMe disk.
    """
    drive = [] if disk is None else ["-drive", f"if=none,id=disk,format=raw,cache=unsafe,file={disk}"]
    command: list[str | Path] = [
        QEMU,
        *_MACHINE,
        *_DEVICES,
        *drive,
        *(["-device", "nvme,drive=disk,serial=disk"] if drive else []),
        "-kernel",
        kernel,
        "-initrd",
        initramfs,
        "-append",
        _COMMAND_LINE,
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as machine:
        try:
            output, _ = machine.communicate(timeout=deadline)
            what = f"{kernel.name}: the guest powered off without a report ({QEMU} exit code {machine.returncode})"
        except subprocess.TimeoutExpired:
            machine.kill()
            output, _ = machine.communicate()
            what = f"{kernel.name}: the guest was not done after {deadline:.0f} s and was ended"
        finally:
            machine.kill()  # where the wait itself was interrupted; harmless to one that has ended
    console = output.decode(errors="backslashreplace").replace("\r", "")
    return parse(what, console)


def parse(what: str, console: str) -> Report:
    """Find the report on a console; ``what`` names the guest's end where there is none."""
    lines = [line for line in console.splitlines() if line.startswith(MARKER)]
    try:
        (line,) = lines
        return msgspec.json.decode(line.removeprefix(MARKER), type=Report)
    except ValueError as error:  # none, or what is there is no report
        raise GuestError(what, console) from error
