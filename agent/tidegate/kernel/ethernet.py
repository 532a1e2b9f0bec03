# SPDX-License-Identifier: Apache-2.0
"""What ethtool shows of an interface, as far as it decides whether XDP can run in its driver."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from typing import NamedTuple

# include/uapi/linux/sockios.h and ethtool.h
_SIOCGIFMTU, _SIOCETHTOOL = 0x8921, 0x8946
_GDRVINFO, _GFLAGS, _GCHANNELS = 0x03, 0x25, 0x3C
_FLAG_LRO = 1 << 15
_DRVINFO_SIZE, _CHANNELS_SIZE = 196, 36


class Facts(NamedTuple):
    """An interface: its driver, queues of which there may be ``most_queues``, MTU in bytes, whether LRO is on.

    None is what the driver doesn't say.
    """

    name: str
    driver: str | None = None
    queues: int | None = None
    most_queues: int | None = None
    mtu: int | None = None
    lro: bool | None = None

    def __str__(self) -> str:
        parts = [
            f"driver {self.driver}" if self.driver else "",
            f"{self.queues} of at most {self.most_queues} queues" if self.queues else "",
            f"MTU {self.mtu}" if self.mtu else "",
            "" if self.lro is None else f"LRO {'on' if self.lro else 'off'}",
        ]
        return ", ".join(part for part in parts if part)


def facts_of(name: str) -> Facts:
    """Ask for the facts of an interface in this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        driver = _ethtool(asked, name, _GDRVINFO, _DRVINFO_SIZE)
        channels = _ethtool(asked, name, _GCHANNELS, _CHANNELS_SIZE)
        flags = _ethtool(asked, name, _GFLAGS, 8)
        try:
            reply = fcntl.ioctl(asked, _SIOCGIFMTU, struct.pack("16s24x", name.encode()))
            mtu = struct.unpack_from("i", reply, 16)[0]
        except OSError:
            mtu = None
    # ethtool.h: struct ethtool_channels has the largest numbers of rx, tx, other and combined, then those set.
    numbers = struct.unpack_from("8I", channels, 4) if channels else None
    return Facts(
        name=name,
        driver=driver[4:36].split(b"\0")[0].decode(errors="replace") if driver else None,
        queues=max(numbers[4], numbers[5]) + numbers[7] if numbers else None,
        most_queues=max(numbers[0], numbers[1], numbers[3]) if numbers else None,
        mtu=mtu,
        lro=bool(struct.unpack_from("I", flags, 4)[0] & _FLAG_LRO) if flags else None,
    )


def _ethtool(asked: socket.socket, name: str, command: int, size: int) -> bytes | None:
    """Return the structure of a command, None where the driver has it not."""
    structure = array.array("B", struct.pack("I", command) + bytes(size - 4))
    request = struct.pack("16sP16x", name.encode(), structure.buffer_info()[0])
    try:
        fcntl.ioctl(asked, _SIOCETHTOOL, request)
    except OSError:
        return None
    return structure.tobytes()
