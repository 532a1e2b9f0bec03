# SPDX-License-Identifier: Apache-2.0
"""The limiter's maps by what they mean: the set in force, mode, lists, bans, sources and counts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping

from tidegate.kernel.layouts import (
    RATELIMIT_BAN,
    RATELIMIT_COUNT,
    RATELIMIT_KEY,
    RATELIMIT_POLICY,
    RATELIMIT_PORTS,
    RATELIMIT_SOURCE,
    RATELIMIT_STATE,
    RatelimitBan,
    RatelimitCount,
    RatelimitKey,
    RatelimitNote,
    RatelimitPolicyNumber,
    RatelimitReason,
    RatelimitSource,
    RatelimitState,
    RatelimitVerdict,
)
from tidegate.kernel.maps import Map
from tidegate.kernel.objects import BpfObject
from tidegate.model.snapshot import MapHealth

#: The maps that all interfaces share, and that outlive the agent by their pins.
SHARED = (
    "ratelimit_state",
    "ratelimit_policies",
    "ratelimit_ports_a",
    "ratelimit_ports_b",
    "ratelimit_ports",
    "ratelimit_own",
    "ratelimit_syns",
    "ratelimit_sources",
    "ratelimit_sketch",
    "ratelimit_guards",
    "ratelimit_pressed",
    "ratelimit_allowed",
    "ratelimit_denied",
    "ratelimit_bans",
)
_ZERO = bytes(4)
_NUMBERS = int(RatelimitPolicyNumber.RATELIMIT_POLICY_MAX)
#: Rows of the sketch.
_ROWS = 4
#: New sources let into a table: a part of it in each second, so that whoever is idle for less stays.
_TURNOVER = 16
_WINDOWS = 7  # 2^27 ns each, in about a second


class LimiterMaps:
    """What all interfaces share; of an object whose maps were pinned before, with what is in them.

    ``cpus`` is on how many packets may arrive.
    """

    def __init__(self, bpf: BpfObject, cpus: int) -> None:
        self._maps = bpf.maps
        self._state_map = bpf.maps["ratelimit_state"]
        self._slots = [bpf.maps["ratelimit_ports_a"], bpf.maps["ratelimit_ports_b"]]
        #: What each slot is known to hold; nothing of one that an earlier agent has written.
        self._written: list[tuple[bytes, bytes]] = [(b"", b""), (b"", b"")]
        state = self.state
        inserts = max(bpf.maps["ratelimit_sources"].max_entries // (_TURNOVER * _WINDOWS * cpus), 1)
        self._write(
            state._replace(
                seed=state.seed or secrets.randbits(64) | 1,
                inserts=inserts,
                sketch_mask=bpf.maps["ratelimit_sketch"].max_entries // _ROWS - 1,
            )
        )

    @property
    def state(self) -> RatelimitState:
        """What is in force."""
        return RatelimitState._make(RATELIMIT_STATE.unpack(self._state_map[_ZERO]))

    def policies(self) -> bytes:
        """Return the policies that are in force, also those of an earlier agent."""
        first, table = (self.state.slot & 1) * _NUMBERS, self._maps["ratelimit_policies"]
        return b"".join(table[_number(first + n)] for n in range(_NUMBERS))

    def put_in_force(self, policies: bytes, ports: bytes, *, anew: bool) -> None:
        """Let packets be judged by this set from one moment on; ``anew``: with fresh buckets.

        ``policies`` are RATELIMIT_POLICY_MAX ``struct ratelimit_policy``, ``ports`` the ``struct ratelimit_ports``
        of all ports.
        """
        state = self.state
        slot = 1 - (state.slot & 1)
        # Returns only when no program uses the set any more that was in force before the present one.
        self._maps["ratelimit_ports"][_number(slot)] = _number(self._slots[slot].fd)
        old_policies, old_ports = self._written[slot]
        self._written[slot] = b"", b""
        _write_changed(
            self._maps["ratelimit_policies"], slot * _NUMBERS, RATELIMIT_POLICY.size, old_policies, policies
        )
        _write_changed(self._slots[slot], 0, RATELIMIT_PORTS.size, old_ports, ports)
        self._written[slot] = policies, ports
        # Never 0, as which an untouched bucket would have a time, after years of uptime one to come.
        generation = state.generation % 0xFF + 1 if anew else state.generation
        self._write(state._replace(slot=slot, generation=generation))

    def set_mode(self, mode: int, lease_ns: int) -> None:
        """Change the mode, and until when it is enforced: CLOCK_MONOTONIC, 0 for ever."""
        self._write(self.state._replace(mode=mode, lease_ns=lease_ns))

    def set_own(self, addresses: Iterable[bytes] | None) -> None:
        """Judge only what is sent to these addresses, of 16 bytes each; None: whatever the address."""
        table, wanted = self._maps["ratelimit_own"], set(addresses or ())
        found = set(table.keys())
        if addresses is None:
            self._write(self.state._replace(own_only=False))
        for address in wanted - found:
            table[address] = bytes(8)
        if addresses is not None:
            self._write(self.state._replace(own_only=True))
        for address in found - wanted:
            del table[address]

    def set_lists(self, allowed: Iterable[bytes], denied: Iterable[bytes], *, divides: bool) -> None:
        """Replace both lists, keys of ``struct ratelimit_prefix``; ``divides`` as in ``struct ratelimit_state``.

        Who comes onto the allow list is on it before anybody leaves.
        """
        if divides:
            self._write(self.state._replace(divides=True))
        wanted = {"ratelimit_allowed": set(allowed), "ratelimit_denied": set(denied)}
        gone = {}
        for name, keys in wanted.items():
            found = set(self._maps[name].keys())
            gone[name] = found - keys
            for key in keys - found:
                self._maps[name][key] = bytes(8)
        for name, keys in gone.items():
            for key in keys:
                del self._maps[name][key]
        self._write(self.state._replace(divides=divides, lists=(self.state.lists + 1) & 0xFFFFFFFF))

    def ban(self, key: bytes, until_ns: int) -> None:
        """Ban a source until then (CLOCK_MONOTONIC; 0: for ever); ``key`` has policy 0 and the narrow width."""
        self._maps["ratelimit_bans"][key] = RATELIMIT_BAN.pack(until_ns, 0)
        self._look_again()

    def unban(self, key: bytes) -> bool:
        """End a ban; false if there is none."""
        try:
            del self._maps["ratelimit_bans"][key]
        except KeyError:
            return False
        self._look_again()
        return True

    def bans(self) -> dict[bytes, RatelimitBan]:
        """Return the bans, those that have ended among them."""
        found = {}
        for count, keys, values in self._maps["ratelimit_bans"].batches():
            size = RATELIMIT_KEY.size
            for n, ban in zip(range(count), RATELIMIT_BAN.iter_unpack(values), strict=True):
                found[bytes(keys[n * size : (n + 1) * size])] = RatelimitBan._make(ban)
        return found

    def banned(self, key: bytes) -> RatelimitBan | None:
        """Return the ban of a source, also one that has ended."""
        try:
            return RatelimitBan._make(RATELIMIT_BAN.unpack(self._maps["ratelimit_bans"][key]))
        except KeyError:
            return None

    def ban_count(self) -> int:
        """Return how many bans there are, those that have ended among them."""
        return sum(count for count, _, _ in self._maps["ratelimit_bans"].batches())

    def ended_bans(self, now_ns: int) -> list[bytes]:
        """Return the keys of the bans that have ended."""
        found, size = [], RATELIMIT_KEY.size
        for _, keys, values in self._maps["ratelimit_bans"].batches():
            for n, (until_ns, _) in enumerate(RATELIMIT_BAN.iter_unpack(values)):
                if 0 < until_ns <= now_ns:
                    found.append(bytes(keys[n * size : (n + 1) * size]))
        return found

    def requesting(self) -> Iterator[tuple[RatelimitKey, RatelimitSource]]:
        """Yield the sources that ask for connections."""
        return self._entries("ratelimit_syns")

    def sources(self) -> Iterator[tuple[RatelimitKey, RatelimitSource]]:
        """Yield the sources of all other packets."""
        return self._entries("ratelimit_sources")

    def health(self, entries: Mapping[str, int | None]) -> dict[str, MapHealth]:
        """Return how full the maps are, of which the entries that come and go were counted elsewhere."""
        return {
            name: MapHealth(
                entries=entries.get(name), limit=m.max_entries if m.is_keyed else None, bytes=m.memory()
            )
            for name, m in self._maps.items()
            if name in SHARED
        }

    def _entries(self, name: str) -> Iterator[tuple[RatelimitKey, RatelimitSource]]:
        for _, keys, values in self._maps[name].batches():
            of_keys = map(RatelimitKey._make, RATELIMIT_KEY.iter_unpack(keys))
            of_values = map(RatelimitSource._make, RATELIMIT_SOURCE.iter_unpack(values))
            yield from zip(of_keys, of_values, strict=True)

    def _look_again(self) -> None:
        """Let what entries remember of the lists be forgotten."""
        self._write(self.state._replace(lists=(self.state.lists + 1) & 0xFFFFFFFF))

    def _write(self, state: RatelimitState) -> None:
        self._state_map[_ZERO] = RATELIMIT_STATE.pack(*state)


def counts(bpf: BpfObject) -> dict[tuple[str, str], RatelimitCount]:
    """Return what the program of one interface has counted, by (verdict, reason)."""
    found = {}
    for verdict in RatelimitVerdict:
        for reason in RatelimitReason:
            if verdict is RatelimitVerdict.COUNT or reason is RatelimitReason.COUNT:
                continue
            place = _number(verdict * RatelimitReason.COUNT + reason)
            of_cpus = [RATELIMIT_COUNT.unpack(value) for value in bpf.maps["ratelimit_counts"].per_cpu(place)]
            packets, size = map(sum, zip(*of_cpus, strict=True))
            if packets:
                found[verdict.name.lower(), reason.name.lower()] = RatelimitCount(packets, size)
    return found


def notes(bpf: BpfObject) -> dict[str, int]:
    """Return what else the program of one interface has to tell, by its name."""
    return {
        note.name.lower(): sum(
            int.from_bytes(value, "little") for value in bpf.maps["ratelimit_notes"].per_cpu(_number(note))
        )
        for note in RatelimitNote
        if note is not RatelimitNote.COUNT
    }


def _number(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _write_changed(table: Map, first: int, size: int, old: bytes, new: bytes) -> None:
    """Write the elements of an array that differ from what it holds; all where that is not known."""
    if old == new:
        return
    for place in range(0, len(new), size):
        value = new[place : place + size]
        if old[place : place + size] != value:
            table[_number(first + place // size)] = value
