# SPDX-License-Identifier: Apache-2.0
"""XDP programs at network interfaces: pinned links, replaced in one step and never by way of nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any, NamedTuple, Self

from tidegate.errors import KernelError, TidegateError, UnavailableError
from tidegate.kernel.ethernet import Facts, facts_of
from tidegate.kernel.libbpf import check, ffi, lib, log_lines, start_log
from tidegate.kernel.objects import Program

# include/uapi/linux/if_link.h: XDP_FLAGS_*, and XDP_ATTACHED_* as modes.
_SKB_MODE, _DRV_MODE = 1 << 1, 1 << 2
_MODES = {0: "none", 1: "native", 2: "generic", 3: "offloaded", 4: "several"}
_LINK_TYPE_XDP = 6  # include/uapi/linux/bpf.h: enum bpf_link_type
#: How libbpf begins the line that has the kernel's own words (netlink's extended acknowledgment).
_KERNEL_SAYS = "Kernel error message: "


class ForeignProgramError(TidegateError):
    """Another program is at the interface already; it is never replaced."""


class GoneError(TidegateError):
    """The interface, or the link at it, is no more."""


class NotNativeError(UnavailableError):
    """The driver can't run the program natively, and generic mode is not allowed."""


class Attached(NamedTuple):
    """The program at an interface: its id, and the mode in which it is; id 0 where there is none."""

    program: int
    mode: str


def query(ifindex: int) -> Attached:
    """Ask what is attached to an interface of this network namespace."""
    found = ffi.new("struct tidegate_xdp *")
    start_log()
    check(lib.tidegate_xdp(ifindex, found), f"interface {ifindex}: query XDP")
    return Attached(found.program, _MODES.get(found.mode, str(found.mode)))


def program_name(number: int) -> str | None:
    """Return the name of a loaded program, None where CAP_SYS_ADMIN is missing or it has been unloaded."""
    name = ffi.new("char[16]")  # BPF_OBJ_NAME_LEN
    if lib.tidegate_program_name(number, name) < 0:
        return None
    return str(ffi.string(name).decode(errors="replace"))


class XdpAttachment:
    """A program at an interface, by a link that is pinned at ``pin`` and so outlives this process.

    ``mode`` is "native" or "generic", ``reason`` why it isn't native (else empty).
    """

    def __init__(self, fd: int, pin: Path, mode: str, reason: str = "") -> None:
        self._fd, self.pin, self.mode, self.reason = fd, pin, mode, reason

    @classmethod
    def attach(cls, program: Program, ifindex: int, pin: Path, *, generic: bool) -> Self:
        """Attach natively, or where the driver can't and ``generic`` allows it, in generic mode.

        Raises :class:`ForeignProgramError`, :class:`NotNativeError`, :class:`GoneError`, and
        :class:`KernelError` where the agent may not.
        """
        name = _name_of(ifindex)
        refuse_foreign(ifindex, name)
        reason = ""
        fd = lib.tidegate_link_xdp(program.fd, ifindex, _DRV_MODE)
        if fd < 0:
            _raise_unless_drivers(-fd, ifindex, name)
            reason = _why_not_native(program, ifindex, name, -fd)
            if not generic:
                raise NotNativeError(
                    f"interface {name}: the limiter can't run in the driver: {reason}; mend that, or set "
                    "rate_limit.generic to allow: it then runs later, and each packet costs more"
                )
            start_log()
            fd = check(
                lib.tidegate_link_xdp(program.fd, ifindex, _SKB_MODE), f"interface {name}: attach in generic mode"
            )
        try:
            check(lib.bpf_obj_pin(fd, os.fsencode(pin)), f"interface {name}: pin link at {pin}")
        except KernelError:
            os.close(fd)
            raise
        return cls(fd, pin, "generic" if reason else "native", reason)

    @classmethod
    def open(cls, pin: Path) -> Self:
        """Open the link that an earlier process pinned; :class:`GoneError` where it attaches nothing any more.

        That is so when its interface has been removed, or moved to another network namespace.
        """
        start_log()
        fd = check(lib.bpf_obj_get(os.fsencode(pin)), f"pinned link {pin}")
        attachment = cls(fd, pin, "none")
        try:
            ifindex = attachment.ifindex
            found = query(ifindex) if ifindex else Attached(0, "none")
            if not found.program or found.program != attachment.program:
                raise GoneError(f"pinned link {pin}: its interface is gone, or in another network namespace")
            attachment.mode = found.mode
            if found.mode == "generic":
                with contextlib.suppress(GoneError):
                    facts = facts_of(_name_of(ifindex))
                    attachment.reason = f"attached so by an earlier start of the agent; {facts}"
        except BaseException:
            attachment.close()
            raise
        return attachment

    @property
    def ifindex(self) -> int:
        """The index of the interface; 0 when it is gone."""
        return int(self._info().ifindex)

    @property
    def program(self) -> int:
        """The id of the program that judges now."""
        return int(self._info().program)

    def replace(self, program: Program) -> None:
        """Have another program judge from the next packet on; not one goes unjudged."""
        result = lib.bpf_link_update(self._fd, program.fd, ffi.NULL)
        if result < 0 and ffi.errno == errno.ENOLINK:
            raise GoneError(f"link {self.pin}: its interface is gone")
        check(result, f"link {self.pin}: replace with program {program.name}")

    def detach(self) -> None:
        """Detach at once, and remove the pin."""
        # The last reference alone would detach later, from a kernel worker.
        result = lib.bpf_link_detach(self._fd)
        if result < 0 and ffi.errno != errno.ENOLINK:
            check(result, f"link {self.pin}: detach")
        self.pin.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the program attached to whoever opens the pin next; twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _info(self) -> Any:
        info = ffi.new("struct tidegate_link_info *")
        check(lib.tidegate_link_info(self._fd, info), f"link {self.pin}: info")
        if info.type != _LINK_TYPE_XDP:
            raise TidegateError(
                f"pin {self.pin}: expected a link of an XDP program, found one of type {info.type}; remove the pin"
            )
        return info


def _name_of(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError as error:
        raise GoneError(f"interface {ifindex}: there is none of this index any more") from error


def refuse_foreign(ifindex: int, name: str) -> None:
    """Raise :class:`ForeignProgramError` where an interface has a program already."""
    found = query(ifindex)
    if not found.program:
        return
    called = program_name(found.program)
    whose = f"{called!r} (id {found.program})" if called else f"of id {found.program} (no CAP_SYS_ADMIN: no name)"
    raise ForeignProgramError(
        f"interface {name}: the XDP program {whose} is attached already, in {found.mode} mode, and Tidegate "
        f"replaces no other's; stop what attached it ('bpftool net' shows it, 'ip link set dev {name} xdp off' "
        f"removes it if no link holds it), or take {name} out of rate_limit.interfaces"
    )


def _raise_unless_drivers(reason: int, ifindex: int, name: str) -> None:
    """Raise where generic mode would be no help: the interface, the privilege or the place is missing."""
    _name_of(ifindex)
    if reason in (errno.EPERM, errno.EACCES):
        raise KernelError(f"interface {name}: attach XDP; needs CAP_NET_ADMIN and CAP_BPF", reason)
    if reason in (errno.EBUSY, errno.EEXIST):
        refuse_foreign(ifindex, name)


def _why_not_native(program: Program, ifindex: int, name: str, reason: int) -> str:
    start_log()
    tried = lib.tidegate_try_xdp(program.fd, ifindex)
    said = [line.partition(_KERNEL_SAYS)[2] for line in log_lines() if _KERNEL_SAYS in line]
    return why(facts_of(name), os.strerror(reason), said[-1].strip() if tried and said else "")


def why(facts: Facts, error: str, kernel: str) -> str:
    """Put in words why native mode failed, from the facts of the interface, the error and the kernel's words."""
    hints = []
    if facts.lro:
        hints.append(f"without LRO: ethtool -K {facts.name} lro off")
    if "queue" in kernel.lower() or "ring" in kernel.lower():
        hints.append(f"fewer queues leave room for XDP's own: ethtool -L {facts.name} combined N")
    if "mtu" in kernel.lower():
        hints.append(f"a smaller MTU: ip link set dev {facts.name} mtu N")
    return "; ".join(part for part in (kernel or error, str(facts), *hints) if part)
