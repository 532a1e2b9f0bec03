# SPDX-License-Identifier: Apache-2.0
"""Durations, rates, sizes and addresses in the notation of nginx, Istio and Kubernetes; pure.

Every ``read`` takes the text of a scalar and raises ValueError; what ``write`` gives reads back the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

# Digits are bounded, so that no text becomes infinity; [0-9], because \d takes the digits of every script.
_NUMBER = r"[0-9]{1,20}(?:\.[0-9]{1,30})?"

_DURATION_UNITS = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_DURATION = "".join(f"(?:({_NUMBER}){unit})?" for unit in _DURATION_UNITS)

_RATE_UNITS = {"s": 1, "m": 60, "h": 3600}
_RATE = f"({_NUMBER})r?/([smh])"

# k, m and g alone are left out: 1024 to nginx, 1000 to Kubernetes.
_SIZE_UNITS = {
    "TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10,
    "TB": 10**12, "GB": 10**9, "MB": 10**6, "kB": 10**3,
    "Ti": 1 << 40, "Gi": 1 << 30, "Mi": 1 << 20, "Ki": 1 << 10, "KB": 10**3, "B": 1, "": 1,
}  # fmt: skip
_SIZE = f"({_NUMBER})({'|'.join(_SIZE_UNITS)})"
_BYTE_RATE = f"{_SIZE}/([smh])"

_PORTS = r" *([0-9]{1,5})(?:-([0-9]{1,5}))? *"
_INTERFACE = r"[^\s/:]{1,64}"
_NAME_BYTES = 15  # IFNAMSIZ of netdevice(7) without the final NUL
_WILDCARDS = "*?["

_LISTEN = r"(?:\[([^\]]*)\]|([^:\[\]]*)):([0-9]{1,5})"

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}"
_PROXY_NAME = r"[A-Za-z0-9_.:-]{1,128}"
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*"

SOCKET_BYTES = 107  # sun_path of unix(7) without the final NUL


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Notation(NamedTuple):
    """How a scalar is written: reading, writing, a pattern for the schema, the word that means None."""

    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    pattern: str | None = None
    none: str | None = None
    plain_numbers: bool = False


def duration(text: str) -> float:
    """Read ``500ms``, ``10s``, ``1m30s``; returns seconds."""
    match = re.fullmatch(_DURATION, text)
    if match is None or not text:
        raise ValueError(f"expected a duration like 500ms, 10s or 1m30s, found {quoted(text)}")
    parts = zip(match.groups(), _DURATION_UNITS.values(), strict=True)
    return float(sum(Decimal(number) * unit for number, unit in parts if number is not None))


def duration_text(seconds: float) -> str:
    """Write seconds in the largest unit that takes a whole number."""
    exact = Decimal(repr(float(seconds)))
    for unit, length in _DURATION_UNITS.items():
        number = exact / length
        if number >= 1 and number == int(number):
            return f"{int(number)}{unit}"
    return f"{exact:f}s"


def rate(text: str) -> float:
    """Read ``10/s``, ``10r/s`` as nginx writes it, ``100/m``, ``0.5/s``; returns events a second."""
    match = re.fullmatch(_RATE, text)
    if match is None:
        raise ValueError(f"expected a rate like 10/s or 100/m, found {quoted(text)}")
    return float(Decimal(match[1]) / _RATE_UNITS[match[2]])


def rate_text(per_second: float) -> str:
    """Write a rate in the first unit that takes a whole number."""
    for unit, seconds in _RATE_UNITS.items():
        number = round(per_second * seconds)
        if float(Decimal(number) / seconds) == per_second:
            return f"{number}/{unit}"
    return f"{Decimal(repr(float(per_second))):f}/s"


def byte_rate(text: str) -> float:
    """Read ``12MB/s``, ``64KiB/s``, ``1GiB/h``; returns bytes a second."""
    match = re.fullmatch(_BYTE_RATE, text)
    if match is None:
        raise ValueError(f"expected bytes in a time like 12MB/s or 64KiB/s, found {quoted(text)}")
    return float(Decimal(match[1]) * _SIZE_UNITS[match[2]] / _RATE_UNITS[match[3]])


def byte_rate_text(per_second: float) -> str:
    """Write bytes a second in the first unit of time that takes a whole number of them."""
    for unit, seconds in _RATE_UNITS.items():
        number = round(per_second * seconds)
        if float(Decimal(number) / seconds) == per_second:
            size = size_text(number)
            return f"{size}B/{unit}" if size.isdigit() else f"{size}/{unit}"
    return f"{Decimal(repr(float(per_second))):f}B/s"


def size(text: str) -> int:
    """Read ``64KiB``, ``12MB``, ``1Gi``, ``4096``; returns bytes."""
    match = re.fullmatch(_SIZE, text)
    number = Decimal(match[1]) * _SIZE_UNITS[match[2]] if match else None
    if number is None or number != int(number):
        raise ValueError(f"expected a size like 64KiB, 12MB or 4096 (bytes), found {quoted(text)}")
    return int(number)


def size_text(count: int) -> str:
    """Write bytes in the largest unit that takes a whole number."""
    whole = [(unit, n) for unit, n in _SIZE_UNITS.items() if n == 1 or (count and count % n == 0)]
    unit, length = max(whole, key=lambda of: of[1])
    return str(count) if length == 1 else f"{count // length}{unit}"


def listen(text: str) -> Listen:
    """Read ``127.0.0.1:19469`` or ``[::1]:19469``."""
    match = re.fullmatch(_LISTEN, text)
    if match is not None and int(match[3]) <= 65535:
        bracketed, bare, port = match.groups()
        try:
            if bracketed is not None:
                return Listen(str(ipaddress.IPv6Address(bracketed)), int(port))
            return Listen(str(ipaddress.IPv4Address(bare)), int(port))
        except ValueError:
            pass  # said below, together with every other reason
    raise ValueError(f"expected ADDRESS:PORT like 127.0.0.1:19469 or [::1]:19469, or off, found {quoted(text)}")


def endpoint(text: str) -> str:
    """Read ``10.0.0.6:5000`` or ``[fd00::6]:5000``; an IPv4 address that is written as IPv6 is the IPv4 one."""
    try:
        host, port = listen(text)
        if not port:
            raise ValueError("no port")
    except ValueError:
        raise ValueError(
            f"expected ADDRESS:PORT like 10.0.0.6:5000 or [fd00::6]:5000, found {quoted(text)}"
        ) from None
    mapped = ipaddress.IPv6Address(host).ipv4_mapped if ":" in host else None
    return str(Listen(host if mapped is None else str(mapped), port))


def name(text: str) -> str:
    """Read the name of a pool: it is a label of metrics and a word of commands."""
    if not re.fullmatch(_NAME, text):
        raise ValueError(
            "expected a name of letters, digits and _ . : / - that begins with a letter or digit, at most 128, "
            f"found {quoted(text)}"
        )
    return text


def proxy_name(text: str) -> str:
    """Read a name that a proxy's config gives: what it takes there, and nothing that its commands are made of."""
    if not re.fullmatch(_PROXY_NAME, text):
        raise ValueError(f"expected a name of letters, digits and _ . : -, at most 128, found {quoted(text)}")
    return text


def domain(text: str) -> str:
    """Read a name of the DNS; returns it in small letters without a dot at the end."""
    found = text.lower().removesuffix(".")
    if not re.fullmatch(_DOMAIN, found) or len(found) > 253:
        raise ValueError(f"expected a name of the DNS like inventory.tidegate.internal, found {quoted(text)}")
    return found


def datagrams(text: str) -> str:
    """Read where datagrams are received: the path of a Unix socket, or an address like ``127.0.0.1:5140``."""
    if text.startswith("/"):
        return socket_path(text)
    try:
        return str(listen(text))
    except ValueError:
        raise ValueError(
            "expected the path of a socket like /run/tidegate/nginx.sock, ADDRESS:PORT like 127.0.0.1:5140, or "
            f"off, found {quoted(text)}"
        ) from None


def port_ranges(text: str) -> list[range]:
    """Read ports like ``443``, ``80,443`` or ``8000-8010``; returns them in order, no two of which touch."""
    matches = [re.fullmatch(_PORTS, part) for part in text.split(",")]
    ends = sorted((int(match[1]), int(match[2] or match[1])) for match in matches if match)
    if None in matches or any(not 1 <= first <= last <= 65535 for first, last in ends):
        raise ValueError(f"expected ports like 443, 80,443 or 8000-8010 (1 to 65535), found {quoted(text)}")
    found: list[range] = []
    for first, last in ends:
        if found and first <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, last + 1))
        else:
            found.append(range(first, last + 1))
    return found


def ports(text: str) -> str:
    """Read ports as :func:`port_ranges` does; returns the one text for them."""
    return ",".join(
        str(ports.start) if len(ports) == 1 else f"{ports.start}-{ports.stop - 1}" for ports in port_ranges(text)
    )


def interface(text: str) -> str:
    """Read the name of a network interface, or a pattern of names like ``eth*``."""
    is_name = not any(character in plain_text(text) for character in _WILDCARDS)
    fits = re.fullmatch(_INTERFACE, text) and not (is_name and len(text.encode()) > _NAME_BYTES)
    if not fits or text in (".", ".."):
        raise ValueError(
            f"expected the name of an interface like eth0, or a pattern like eth*, found {quoted(text)}"
        )
    return text


def power_of_two(text: str) -> int:
    """Read a whole number that is a power of two."""
    number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
    if number < 1 or number & (number - 1):
        near = f" like {1 << number.bit_length() - 1} or {1 << number.bit_length()}" if number else " like 65536"
        raise ValueError(f"expected a power of two{near}, found {quoted(text)}")
    return number


def ip_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read ``10.0.0.0/8`` or ``fd00::/8``; a single address is a network too."""
    try:
        if "%" in text:
            raise ValueError("a network has no zone")
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(
            f"expected a network like 10.0.0.0/8 or fd00::/8, found {quoted(text)}: {error}"
        ) from error


def network(text: str) -> str:
    """Read a network as :func:`ip_network` does; returns the one text for it."""
    return str(ip_network(text))


def plain_text(text: str) -> str:
    """Read text that the kernel and an encoder take: no NUL, no half of a surrogate pair."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"expected text without NUL and lone surrogates, found {quoted(text)}")
    return text


def file(text: str) -> str:
    """Read the path of a file; whether it is there is not asked here."""
    if not text:
        raise ValueError("expected the path of a file, found ''")
    return plain_text(text)


def socket_path(text: str) -> str:
    """Read the path of a Unix socket: absolute, and short enough for the kernel."""
    length = len(plain_text(text).encode())
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, found {quoted(text)}")
    if length > SOCKET_BYTES:
        raise ValueError(f"expected a path of at most {SOCKET_BYTES} bytes, found {length}")
    return text


def directory(text: str) -> str:
    """Read the path of a directory: absolute; whether it is there is not asked here."""
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, found {quoted(text)}")
    return plain_text(text)


def quoted(text: str) -> str:
    """Show a text of a user on one line, shortened."""
    return repr(text) if len(text) <= 60 else f"{text[:57]!r}..."


DURATION = Notation(duration, duration_text, f"^(?=.){_DURATION}$")
RATE = Notation(rate, rate_text, f"^{_RATE}$")
BYTE_RATE = Notation(byte_rate, byte_rate_text, f"^{_BYTE_RATE}$")
SIZE = Notation(size, size_text, f"^{_SIZE}$", plain_numbers=True)
ADDRESS = Notation(listen, none="off")
FILE = Notation(file)
SOCKET = Notation(socket_path, pattern="^/")
DIRECTORY = Notation(directory, pattern="^/")
NETWORK = Notation(network)
DATAGRAMS = Notation(datagrams, none="off")
PORTS = Notation(ports)
INTERFACE = Notation(interface, pattern=f"^{_INTERFACE}$")
ENDPOINT = Notation(endpoint)
NAME = Notation(name, pattern=f"^{_NAME}$")
PROXY_NAME = Notation(proxy_name, pattern=f"^{_PROXY_NAME}$")
DOMAIN = Notation(domain)
DURATION_OR_OFF = Notation(duration, duration_text, f"^(?=.)(?:off|{_DURATION})$", none="off")
POWER_OF_TWO = Notation(power_of_two, plain_numbers=True)
#: For types that are declared where this module isn't known.
NOTATIONS = {"duration": DURATION, "duration_or_off": DURATION_OR_OFF, "rate": RATE, "size": SIZE}
