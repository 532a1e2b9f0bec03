# SPDX-License-Identifier: Apache-2.0
"""Keeps the limiter attached to the interfaces that the config names, as they come, go and are renamed."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple, Self

from tidegate.errors import TidegateError
from tidegate.kernel.objects import BpfObject
from tidegate.kernel.pins import LINK, PinDirectory
from tidegate.kernel.xdp import GoneError, XdpAttachment, refuse_foreign

#: What was refused is tried again after so many seconds.
RETRY = 30.0
_RTMGRP_LINK = 1  # include/uapi/linux/rtnetlink.h
_ENTRY = "ratelimit"  # the program's name in its object


class Step(StrEnum):
    """What is to be done with an interface."""

    DETACH = "detach"
    RENAME = "rename"
    ATTACH = "attach"


class Change(NamedTuple):
    """One step; ``name`` is the interface's name of now, or its last one where it is gone."""

    step: Step
    ifindex: int
    name: str


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether one of the patterns (fnmatch) has this interface."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def plan(present: Mapping[int, str], attached: Mapping[int, str], patterns: Sequence[str]) -> list[Change]:
    """Return what leads from the interfaces that the limiter is attached to, to those that match; pure.

    Both are names by index. What has gone is detached first, so that its pin is free for one that came instead.
    """
    wanted = {index: name for index, name in present.items() if matches(name, patterns)}
    gone = [Change(Step.DETACH, i, present.get(i, name)) for i, name in attached.items() if i not in wanted]
    renamed = [
        Change(Step.RENAME, i, wanted[i]) for i, name in attached.items() if i in wanted and wanted[i] != name
    ]
    new = [Change(Step.ATTACH, i, name) for i, name in wanted.items() if i not in attached]
    return [*gone, *renamed, *new]


class Attachment(NamedTuple):
    """How the limiter is at an interface that matches.

    ``mode`` is native or generic, None where it isn't there; ``reason`` says why it isn't native.
    """

    interface: str
    mode: str | None
    reason: str


class LinkEvents:
    """Tells that interfaces of this network namespace have changed; which and how is for the reader to see.

    A plain socket: what a netlink library would decode is not looked at, and it would take 18 MiB.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK))

    @property
    def fd(self) -> int:
        """Readable when something has changed."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take all events that are there; say whether there were any."""
        seen = False
        while True:
            try:
                self._socket.recv(65536)
            except BlockingIOError:
                return seen
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost: then something has changed
                    raise
            seen = True

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


class _Held(NamedTuple):
    name: str
    attachment: XdpAttachment
    bpf: BpfObject


class _Refused(NamedTuple):
    name: str
    error: TidegateError
    at: float


class Interfaces:
    """The limiter at every interface that matches; a context manager that leaves it attached.

    ``load`` loads an instance of the program for an interface of that index and name, its shared maps reused by
    their pins; ``generic`` says whether it may run in generic mode. ``stale_pins`` counts the pins whose interface
    was gone.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        pins: PinDirectory,
        load: Callable[[int, str], BpfObject],
        *,
        generic: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patterns, self._pins, self._load, self._generic = patterns, pins, load, generic
        self._clock = clock
        self._held: dict[int, _Held] = {}
        self._left: dict[int, XdpAttachment] = {}
        self._refused: dict[int, _Refused] = {}
        self.stale_pins = 0
        self.events = LinkEvents()
        self._adopt()
        self.sync()

    def _adopt(self) -> None:
        """Open the links that an earlier agent left, whose programs judge until they are replaced."""
        for index in self._pins.interfaces():
            pin = self._pins.at_interface(index) / LINK
            try:
                if not pin.exists():
                    raise GoneError(f"pinned link {pin}: there is none")
                self._left[index] = XdpAttachment.open(pin)
            except GoneError:
                self._pins.forget(index)
                self.stale_pins += 1

    def follow(self) -> list[Change]:
        """Do what events since the last call ask for, and try again what is due; return what was done."""
        now = self._clock()
        if self.events.drain() or any(now - refused.at >= RETRY for refused in self._refused.values()):
            return self.sync()
        return []

    def sync(self) -> list[Change]:
        """Attach, detach and rename until all is as it should be; return what was done."""
        present = dict(socket.if_nameindex())
        for index in [i for i in self._left if not matches(present.get(i, ""), self._patterns)]:
            self._left.pop(index).detach()
            self._pins.forget(index)
        # Deleted ones first: one that was made again may have the same index.
        done = [
            Change(Step.DETACH, i, held.name) for i, held in self._held.items() if held.attachment.ifindex != i
        ]
        for change in done:
            self._release(change.ifindex)
        for index in [i for i, refused in self._refused.items() if present.get(i) != refused.name]:
            del self._refused[index]
        attached = {index: held.name for index, held in self._held.items()}
        return done + [change for change in plan(present, attached, self._patterns) if self._carry_out(change)]

    def _carry_out(self, change: Change) -> bool:
        if change.step is Step.DETACH:
            self._release(change.ifindex)
        elif change.step is Step.RENAME:
            self._held[change.ifindex] = self._held[change.ifindex]._replace(name=change.name)
        else:
            return self._attach(change.ifindex, change.name)
        return True

    def _attach(self, index: int, name: str) -> bool:
        refused = self._refused.get(index)
        if refused is not None and self._clock() - refused.at < RETRY:
            return False
        try:
            self._held[index] = self._make(index, name)
        except TidegateError as error:
            if index not in self._left:
                self._pins.forget(index)
            if isinstance(error, GoneError):  # deleted meanwhile, of which an event tells
                self._left.pop(index, None)
                return False
            self._refused[index] = _Refused(name, error, self._clock())
            return False
        self._refused.pop(index, None)
        return True

    def _make(self, index: int, name: str) -> _Held:
        """Load the program, and put it at the interface or in the place of the one that judges there."""
        if (left := self._left.get(index)) is not None and left.mode == "generic" and not self._generic:
            left.detach()  # the config refuses it now
            del self._left[index]
            left = None
        if left is None:
            refuse_foreign(index, name)
        with contextlib.ExitStack() as undo:
            bpf = undo.enter_context(self._load(index, name))
            program = bpf.programs[_ENTRY]
            if left is None:
                pin = self._pins.at_interface(index) / LINK
                left = XdpAttachment.attach(program, index, pin, generic=self._generic)
            else:
                left.replace(program)
                del self._left[index]
            undo.pop_all()
        return _Held(name, left, bpf)

    def _release(self, index: int) -> None:
        held = self._held.pop(index)
        held.attachment.detach()
        held.bpf.close()
        self._pins.forget(index)

    @property
    def objects(self) -> Mapping[str, BpfObject]:
        """The loaded object of each interface that the limiter is attached to, by its name."""
        return {held.name: held.bpf for held in self._held.values()}

    def attachments(self) -> list[Attachment]:
        """Say of each interface that matches how the limiter is attached, and if not, why."""
        held = [
            Attachment(held.name, held.attachment.mode, held.attachment.reason) for held in self._held.values()
        ]
        refused = [
            Attachment(refused.name, self._left[index].mode if index in self._left else None, str(refused.error))
            for index, refused in self._refused.items()
        ]
        return sorted([*held, *refused], key=lambda found: found.interface)

    def uninstall(self) -> None:
        """Detach from all interfaces, whoever attached."""
        for index in list(self._held):
            self._release(index)
        for index, attachment in self._left.items():
            attachment.detach()
            self._pins.forget(index)
        self._left.clear()

    def close(self) -> None:
        """Leave the limiter attached, for the next agent to take over."""
        for held in self._held.values():
            held.attachment.close()
            held.bpf.close()
        for attachment in self._left.values():
            attachment.close()
        self._held.clear()
        self._left.clear()
        self.events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
