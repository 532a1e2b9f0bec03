# SPDX-License-Identifier: Apache-2.0
"""BPF objects from file to attached programs, each as a context manager."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tidegate.errors import UnavailableError
from tidegate.kernel.charge import MapShape
from tidegate.kernel.libbpf import check, check_pointer, ffi, lib, start_log
from tidegate.kernel.maps import Map
from tidegate.kernel.pins import unfit
from tidegate.model.snapshot import MapHealth

OBJECTS = Path(__file__).parent / "objects"


class ProgramInfo(NamedTuple):
    """What the kernel says of a loaded program; runs and their time in ns only where BPF statistics are on.

    ``recursion_misses`` are calls that were left out because the program was running on that CPU already; None
    before Linux 5.12, which does not count them.
    """

    id: int
    run_time_ns: int
    runs: int
    recursion_misses: int | None


class RunResult(NamedTuple):
    """The outcome of BPF_PROG_TEST_RUN: return value, resulting packet, mean duration in ns."""

    retval: int
    data: bytes
    duration_ns: int


class Link:
    """A program that is attached; closing it detaches, unless it is pinned."""

    def __init__(self, pointer: Any, name: str) -> None:
        self._pointer, self.name = pointer, name

    @classmethod
    def open(cls, path: str) -> Link:
        """Open a link that was pinned at ``path``."""
        start_log()
        pointer = check_pointer(lib.bpf_link__open(os.fsencode(path)), f"pinned link {path}")
        return cls(pointer, path)

    @property
    def fd(self) -> int:
        """The link's descriptor."""
        return int(lib.bpf_link__fd(self._pointer))

    def pin(self, path: str) -> None:
        """Keep the link alive under ``path`` in bpffs, also beyond this process."""
        start_log()
        check(lib.bpf_link__pin(self._pointer, os.fsencode(path)), f"link {self.name}: pin at {path}")

    def update(self, program: Program) -> None:
        """Replace the attached program atomically (XDP and cgroup links; tracing links refuse)."""
        start_log()
        result = lib.bpf_link__update_program(self._pointer, program._pointer)
        check(result, f"link {self.name}: update to program {program.name}")

    def read(self) -> bytes:
        """Run an iterator program once and return all that it wrote."""
        fd = check(lib.bpf_iter_create(self.fd), f"iterator {self.name}")
        with os.fdopen(fd, "rb") as output:
            return output.read()

    def close(self) -> None:
        """Detach; twice is harmless."""
        if self._pointer is not None:
            lib.bpf_link__destroy(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Program:
    """One program of an object."""

    def __init__(self, pointer: Any) -> None:
        self._pointer = pointer
        self.name = ffi.string(lib.bpf_program__name(pointer)).decode()
        self.section = ffi.string(lib.bpf_program__section_name(pointer)).decode()

    @property
    def fd(self) -> int:
        """The loaded program's descriptor."""
        return int(lib.bpf_program__fd(self._pointer))

    @property
    def is_loaded(self) -> bool:
        """Whether the kernel has it: not before the load, nor where it was left out."""
        return self.fd >= 0

    def skip(self) -> None:
        """Leave this program out when the object is loaded."""
        check(lib.bpf_program__set_autoload(self._pointer, False), f"program {self.name}: skip")

    def attach(self) -> Link:
        """Attach to what the section names: a typed tracepoint."""
        start_log()
        pointer = lib.bpf_program__attach(self._pointer)
        return Link(check_pointer(pointer, f"program {self.name}: attach to {self.section}"), self.name)

    def attach_xdp(self, interface: int) -> Link:
        """Attach to a network interface, given by its index, in the best mode that its driver has."""
        start_log()
        pointer = lib.bpf_program__attach_xdp(self._pointer, interface)
        return Link(check_pointer(pointer, f"program {self.name}: attach to interface {interface}"), self.name)

    def attach_cgroup(self, path: Path) -> Link:
        """Attach to a cgroup2 directory and all below it."""
        start_log()
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            pointer = lib.bpf_program__attach_cgroup(self._pointer, fd)
            return Link(check_pointer(pointer, f"program {self.name}: attach to {path}"), self.name)
        finally:
            os.close(fd)

    @property
    def is_iterator(self) -> bool:
        """Whether the program runs when it is read, and not at an event."""
        return bool(self.section.startswith("iter/"))

    def attach_iterator(self, elements_of: Map | None = None) -> Link:
        """Make an iterator, of a map's elements where the section says so; read it with :meth:`Link.read`."""
        start_log()
        pointer = lib.tidegate_attach_iter(self._pointer, -1 if elements_of is None else elements_of.fd)
        return Link(check_pointer(pointer, f"program {self.name}: make iterator"), self.name)

    def info(self) -> ProgramInfo:
        """Ask the kernel for the program's id and counts."""
        info = ffi.new("struct tidegate_program_info *")
        check(lib.tidegate_program_info(self.fd, info), f"program {self.name}: info")
        misses = info.recursion_misses if info.counts_misses else None
        return ProgramInfo(info.id, info.run_time_ns, info.run_cnt, misses)

    def test_run(self, packet: bytes, *, repeat: int = 1, room: int = 256) -> RunResult:
        """Run the program on ``packet`` without any interface; ``room`` bytes may be added to it."""
        size, retval, duration = ffi.new("__u32 *"), ffi.new("__u32 *"), ffi.new("__u32 *")
        size[0] = len(packet) + room
        output = ffi.new("char[]", size[0])
        start_log()
        result = lib.tidegate_test_run(self.fd, packet, len(packet), output, size, repeat, retval, duration)
        check(result, f"program {self.name}: test run with {len(packet)} bytes")
        return RunResult(retval[0], bytes(ffi.buffer(output, size[0])), duration[0])

    def live_run(self, packet: bytes, *, repeat: int, batch: int = 64) -> None:
        """Run an XDP program on ``packet`` so many times, with frames that go where it sends them (Linux 5.18)."""
        start_log()
        result = lib.tidegate_live_run(self.fd, packet, len(packet), repeat, batch)
        check(result, f"program {self.name}: live run with {len(packet)} bytes")


class BpfObject:
    """A compiled object: opened, configured, loaded, and closed with all that it attached."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UnavailableError(
                f"BPF object {path.name}: expected at {path}, not found; run 'make setup' to compile it"
            )
        self.name = path.name.removesuffix(".bpf.o")
        self.links: list[Link] = []
        start_log()
        self._pointer = check_pointer(
            lib.bpf_object__open_file(os.fsencode(path), ffi.NULL), f"object {self.name}: open"
        )
        self.programs = {p.name: p for p in map(Program, self._iterate(lib.bpf_object__next_program))}
        self._map_pointers = {
            ffi.string(lib.bpf_map__name(p)).decode(): p for p in self._iterate(lib.bpf_object__next_map)
        }
        self.maps: dict[str, Map] = {}

    @classmethod
    def named(cls, name: str) -> BpfObject:
        """Open one of the objects that Tidegate ships, by its concern."""
        return cls(OBJECTS / f"{name}.bpf.o")

    def set_constant(self, name: str, value: bytes) -> None:
        """Set a ``const volatile`` variable before the object is loaded."""
        size, offset = ffi.new("__u32 *"), ffi.new("__u32 *")
        place = lib.tidegate_variable(self._pointer, b".rodata", name.encode(), size, offset)
        if place == ffi.NULL or size[0] != len(value):
            raise ValueError(f"object {self.name}: no constant {name} of {len(value)} bytes in .rodata")
        ffi.memmove(place, value, len(value))

    def set_max_entries(self, name: str, entries: int) -> None:
        """Set the size of a map before the object is loaded."""
        result = lib.bpf_map__set_max_entries(self._map_pointers[name], entries)
        check(result, f"map {name}: set size to {entries}")

    def pin_maps(self, directory: Path, names: Iterable[str]) -> list[str]:
        """Share maps by pins in ``directory`` with other objects and later processes; just before the load.

        A pinned map of the same shape is used with what is in it. One of another shape loses its pin, to which a
        new map comes: programs that have the old one go on with it until they are replaced. Returns the names of
        those.
        """
        wanted = {shape.name: shape for shape in self.shapes() if shape.name in set(names)}
        aside = unfit(directory, wanted)
        for name in aside:
            (directory / name).unlink()
        for name in wanted:
            result = lib.bpf_map__set_pin_path(self._map_pointers[name], os.fsencode(directory / name))
            check(result, f"map {name}: set pin")
        return aside

    def share(self, maps: Mapping[str, Map]) -> None:
        """Use maps of another object, by name, before this one is loaded."""
        for name, shared in maps.items():
            check(lib.bpf_map__reuse_fd(self._map_pointers[name], shared.fd), f"map {name}: share")

    def resize(self, sizes: Mapping[str, int]) -> None:
        """Set the sizes of several maps, by name, before the object is loaded."""
        for name, entries in sizes.items():
            self.set_max_entries(name, entries)

    def shapes(self) -> list[MapShape]:
        """Return what its maps are made with; needs neither privilege nor a load."""
        return [
            MapShape(
                name=name,
                type=lib.bpf_map__type(pointer),
                key_size=lib.bpf_map__key_size(pointer),
                value_size=lib.bpf_map__value_size(pointer),
                max_entries=lib.bpf_map__max_entries(pointer),
                flags=lib.bpf_map__map_flags(pointer),
            )
            for name, pointer in self._map_pointers.items()
        ]

    def load(self, sizes: Mapping[str, tuple[int, int]] | None = None) -> Self:
        """Verify and load the programs; refuse maps whose (key, value) sizes differ from ``sizes``."""
        start_log()
        check(lib.bpf_object__load(self._pointer), f"object {self.name}: load")
        self.maps = {name: Map(pointer) for name, pointer in self._map_pointers.items()}
        for name, expected in (sizes or {}).items():
            found = (self.maps[name].key_size, self.maps[name].value_size)
            if found != expected:
                raise UnavailableError(
                    f"map {name}: the agent expects keys and values of {expected} bytes, the object has "
                    f"{found}; agent and object are of different versions: run 'make setup'"
                )
        for m in self.maps.values():
            m.weigh_entry()
        return self

    def attach(self) -> Self:
        """Attach every loaded program but iterators to what its section names, until the object is closed."""
        for program in self.programs.values():
            if program.is_loaded and not program.is_iterator:
                self.links.append(program.attach())
        return self

    def variable(self, name: str) -> int:
        """Read an unsigned global variable of a loaded object."""
        section, place = self._variable(name)
        return int.from_bytes(section[bytes(4)][place], "little")

    def set_variable(self, name: str, value: int) -> None:
        """Write an unsigned global variable of a loaded object that has none which its programs write."""
        section, place = self._variable(name)
        image = bytearray(section[bytes(4)])
        image[place] = value.to_bytes(place.stop - place.start, "little")
        section[bytes(4)] = bytes(image)

    def _variable(self, name: str) -> tuple[Map, slice]:
        size, offset = ffi.new("__u32 *"), ffi.new("__u32 *")
        if lib.tidegate_variable(self._pointer, b".bss", name.encode(), size, offset) == ffi.NULL:
            raise KeyError(name)
        # Through the map: what libbpf keeps in memory is the initial image, not the running one.
        section = next(m for map_name, m in self.maps.items() if map_name.endswith(".bss"))
        return section, slice(offset[0], offset[0] + size[0])

    def close(self) -> None:
        """Detach and unload; twice is harmless."""
        for link in self.links:
            link.close()
        self.links.clear()
        for m in self.maps.values():
            m.close()
        if self._pointer is not None:
            lib.bpf_object__close(self._pointer)
            self._pointer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _iterate(self, step: Any) -> list[Any]:
        found, pointer = [], step(self._pointer, ffi.NULL)
        while pointer != ffi.NULL:
            found.append(pointer)
            pointer = step(self._pointer, pointer)
        return found


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """Let the kernel time every BPF program meanwhile (Linux 5.8, CAP_SYS_ADMIN; some 20 ns a run)."""
    fd = check(lib.bpf_enable_stats(0), "BPF run time statistics")
    try:
        yield
    finally:
        os.close(fd)


def possible_cpus() -> int:
    """Return for how many CPUs the kernel of this host keeps values that each CPU has."""
    return check(lib.libbpf_num_possible_cpus(), "possible CPUs")


def map_health(bpf: BpfObject) -> dict[str, MapHealth]:
    """Return how full an object's own maps are; the limit only where it counts entries that come and go."""
    return {
        name: MapHealth(entries=m.entries(), limit=m.max_entries if m.is_keyed else None, bytes=m.memory())
        for name, m in bpf.maps.items()
        if "." not in name  # libbpf's data sections
    }
