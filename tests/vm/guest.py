# SPDX-License-Identifier: Apache-2.0
"""What runs in the guest, as its init: try the objects, measure connections, ask the doctor, report, power off."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import logging
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tests.vm.disk import measure_disk
from tests.vm.report import ENTRIES, MARKER, ObjectReport, ProgramReport, Report, Rows
from tests.vm.shortage import Shortage, run_short
from tests.vm.traffic import Client, Count, Counts, Ports, Server, move_to
from tidegate.errors import TidegateError
from tidegate.kernel.objects import OBJECTS, BpfObject, Link, Program
from tidegate.measurement import Bounds, Measurement
from tidegate.model.feature import Feature
from tidegate.model.fields import Role
from tidegate.model.snapshot import EndpointRow, View
from tidegate.signals import tcp

CGROUPS = Path("/sys/fs/cgroup")
_MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", str(CGROUPS)),
)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_POWER_OFF = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF
_SETTLES = 20.0
#: The map over which an object's iterators walk.
_WALKED = {"tcp": "tcp_sockets", "disk": "disk_requests", "http": "http_sockets"}
_CLIENT, _SERVER = "gateway.service", "upstream.service"


def main() -> None:
    """Do everything, report, and power off, whatever happens."""
    atexit.register(power_off)  # runs after Python has shown an exception on the console
    prepare()
    report = run()
    # The kernel's own messages must not fall into the line.
    Path("/proc/sys/kernel/printk").write_text("1", "ascii")
    sys.stdout.write(f"\n{MARKER}{msgspec.json.encode(report).decode()}\n")


def power_off() -> None:
    """End the machine."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).reboot(_POWER_OFF)


def prepare() -> None:
    """Mount what a Linux system has and bring up the loopback."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, path in _MOUNTS:
        if libc.mount(kind.encode(), path.encode(), kind.encode(), 0, None):
            number = ctypes.get_errno()
            raise OSError(number, f"mount {kind}: {os.strerror(number)}", path)
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/", PYTHONPATH=os.pathsep.join(sys.path))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def run() -> Report:
    """Try everything."""
    objects = [try_object(path) for path in sorted(OBJECTS.glob("*.bpf.o"))]
    doctor = subprocess.run(
        [sys.executable, "-m", "tidegate.cli.main", "doctor", "--json"], stdout=subprocess.PIPE, check=False
    )
    try:
        with Measurement(Bounds()) as measurement:
            counted = make_traffic()
            view = settled(measurement)
            sockets = sockets_to(name.split()[-1] for name in counted)
            ports = {row.endpoint: (row.used, row.limit) for row in measurement.measure().ports or ()}
            short: tuple[Shortage, Shortage] | None = run_short(CGROUPS, measurement)
        measured, losses, refusal = rows_of(view), view.health.losses | view.health.events_lost, ""
    except TidegateError as error:
        counted, measured, losses, refusal = {}, None, {}, str(error)
        short = None
        sockets, ports = {}, {}
    entries, counts_misses = count_entries()
    return Report(
        kernel=platform.release(),
        objects=objects,
        doctor=msgspec.json.decode(doctor.stdout, type=list[Feature]),
        doctor_exit=doctor.returncode,
        counted=counted,
        measured=measured,
        losses=losses,
        short=short,
        entries=entries,
        counts_misses=counts_misses,
        ports=ports,
        sockets=sockets,
        refusal=refusal,
        disk=measure_disk(),
    )


def sockets_to(endpoints: Iterable[str]) -> dict[str, int]:
    """Count the sockets whose remote side is one of ``endpoints``, in any state, as /proc/net shows them."""
    wanted = {hexadecimal(endpoint): endpoint for endpoint in endpoints if not endpoint.startswith(":")}
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()
    ]
    return dict(Counter(wanted[line[2]] for line in lines if line[2] in wanted))


def hexadecimal(endpoint: str) -> str:
    """Write ``ip:port`` as /proc/net does: each word of the address in the CPU's order."""
    host, _, port = endpoint.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    words = struct.unpack(f"={4 if family == socket.AF_INET6 else 1}I", socket.inet_pton(family, host.strip("[]")))
    return f"{''.join(f'{word:08X}' for word in words)}:{int(port):04X}"


def count_entries() -> tuple[int | None, bool]:
    """Fill a map that grows; return how many entries it is said to have, and whether misses are counted."""
    bpf, _ = tcp.load(max_rows=64, max_sockets=2 * ENTRIES)
    with bpf:
        sockets = bpf.maps["tcp_sockets"]
        for n in range(ENTRIES):
            sockets[n.to_bytes(sockets.key_size, "little")] = bytes(sockets.value_size)
        return sockets.entries(), bpf.programs["tcp_state"].info().recursion_misses is not None


def try_object(path: Path) -> ObjectReport:
    """Load an object and attach all of it; if it doesn't load, try each of its programs by itself."""
    name = path.name.removesuffix(".bpf.o")
    try:
        with BpfObject(path) as bpf:
            bpf.load()
            return ObjectReport(name, True, [try_attach(program, bpf) for program in bpf.programs.values()])
    except TidegateError as error:
        reason = str(error)
    with BpfObject(path) as bpf:
        names = list(bpf.programs)
    return ObjectReport(name, False, [try_alone(path, each) for each in names], reason)


def try_alone(path: Path, name: str) -> ProgramReport:
    """Load and attach one program of an object without the others."""
    with BpfObject(path) as bpf:
        for other in bpf.programs.values():
            if other.name != name:
                other.skip()
        program = bpf.programs[name]
        try:
            bpf.load()
        except TidegateError as error:
            return ProgramReport(name, program.section, False, False, str(error))
        return try_attach(program, bpf)


def try_attach(program: Program, bpf: BpfObject) -> ProgramReport:
    """Attach a loaded program to what its section says, here, and detach it again."""
    try:
        attach(program, bpf).close()
    except TidegateError as error:
        return ProgramReport(program.name, program.section, True, False, str(error))
    return ProgramReport(program.name, program.section, True, True)


def attach(program: Program, bpf: BpfObject) -> Link:
    """Attach a program: XDP to the loopback, what works on a cgroup to the topmost, the rest by its section.

    An iterator over a map's elements is made for the map that it is written for.
    """
    if program.is_iterator:
        over_map = program.section in ("iter/bpf_map_elem", "iter/bpf_sk_storage_map")
        return program.attach_iterator(bpf.maps[_WALKED[bpf.name]] if over_map else None)
    kind = program.section.partition("/")[0].partition(".")[0]
    if kind == "xdp":
        return program.attach_xdp(socket.if_nametoindex("lo"))
    if kind.startswith("cgroup") or kind == "sockops":
        return program.attach_cgroup(CGROUPS)
    return program.attach()


def make_traffic() -> Rows:
    """Run server and client, each in its cgroup; return what they counted."""
    stop_read, stop_write = os.pipe()
    ports_read, ports_write = os.pipe()

    def serve() -> Counts:
        os.close(stop_write)
        server = Server()
        os.write(ports_write, msgspec.json.encode(server.ports))
        return server.serve(stop_read)

    server = in_cgroup(_SERVER, serve)
    os.close(ports_write)  # so that a server that fails is an end of file
    ports = msgspec.json.decode(os.read(ports_read, 4096), type=Ports)
    client = in_cgroup(_CLIENT, lambda: Client(ports).run())
    counted = {f"{_CLIENT} {Role.CLIENT} {endpoint}": count for endpoint, count in client().items()}
    os.close(stop_write)
    return counted | {f"{_SERVER} {Role.SERVER} {endpoint}": count for endpoint, count in server().items()}


def in_cgroup(name: str, work: Callable[[], Counts]) -> Callable[[], Counts]:
    """Begin ``work`` in a process and a cgroup of its own; what is returned waits for its result."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            move_to(CGROUPS / name)
            os.write(write, msgspec.json.encode(work()))
        except Exception:
            logging.exception(name)
            os._exit(1)
        os._exit(0)
    os.close(write)

    def wait() -> Counts:
        with os.fdopen(read, "rb") as result:
            text = result.read()
        if os.waitpid(child, 0)[1]:
            raise ChildProcessError(f"{name}: failed, for the reason above")
        return msgspec.json.decode(text, type=Counts)

    return wait


def settled(measurement: Measurement) -> View:
    """Measure until no connection is open: the kernel ends the last ones after the application has."""
    end = time.monotonic() + _SETTLES
    while True:
        view = measurement.measure()
        if all(row.open == 0 for row in view.endpoints) or time.monotonic() > end:
            return view
        time.sleep(0.2)


def rows_of(view: View) -> Rows:
    """Turn what was measured into what the two sides count."""
    return {f"{row.service} {row.role} {row.endpoint}": count_of(row) for row in view.endpoints}


def count_of(row: EndpointRow) -> Count:
    """Take the counts of one row; those of its handshakes have to be the same as of its connections."""
    failures = {reason: n for reason, n in (row.failures or {}).items() if n}
    established = row.established
    if row.handshake and row.handshake.count != established:
        failures["handshakes"] = row.handshake.count
    return Count(row.connects or 0, established, failures)
