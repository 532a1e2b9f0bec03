# SPDX-License-Identifier: Apache-2.0
"""The driver that a section of the config asks for; its module is loaded only then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tidegate.config.pools import (
    AnyDriver,
    DnsDriver,
    EnvoyDriver,
    FailfastDriver,
    HaproxyDriver,
    NginxDriver,
)
from tidegate.errors import DriverError
from tidegate.pools.driver import Driver
from tidegate.pools.journal import Journal, Kept, file_name, read
from tidegate.pools.null import NullDriver


def name_of(section: AnyDriver) -> str:
    """Return the word that the config has for a driver."""
    return str(section.__struct_config__.tag)


def names(sections: Iterable[AnyDriver]) -> Iterator[tuple[str, AnyDriver]]:
    """Yield each driver of a pool with a name of its own: the second HAProxy of a pool is ``haproxy:2``."""
    counts: dict[str, int] = {}
    for section in sections:
        word = name_of(section)
        counts[word] = counts.get(word, 0) + 1
        yield (word if counts[word] == 1 else f"{word}:{counts[word]}"), section


def make(section: AnyDriver | None, endpoints: Iterable[str], journal: Journal) -> Driver:
    """Return the driver of a proxy; without a section the null driver. The kernel's isn't made here."""
    # Each brings libraries along that a node without it need not carry.
    match section:
        case None:
            return NullDriver(endpoints, journal)
        case HaproxyDriver():
            from tidegate.pools import haproxy  # noqa: PLC0415

            return haproxy.HaproxyDriver(endpoints, section, journal)
        case NginxDriver():
            from tidegate.pools import nginx  # noqa: PLC0415

            return nginx.NginxDriver(endpoints, section, journal)
        case DnsDriver():
            from tidegate.pools import dns  # noqa: PLC0415

            return dns.DnsDriver(endpoints, section, journal)
        case EnvoyDriver():
            from tidegate.pools import envoy  # noqa: PLC0415

            return envoy.EnvoyDriver(endpoints, section, journal)
        case FailfastDriver():
            raise DriverError("failfast: the kernel's driver is made where its programs are loaded")


def journal_of(
    directory: Path, pool: str, name: str, section: AnyDriver | None, endpoints: Iterable[str]
) -> Journal:
    """Return the journal of a driver, of what the null driver does in memory alone."""
    if section is None:
        return Journal(None, Kept(pool=pool, driver=name, endpoints=tuple(endpoints), config={}))
    kept = Kept(pool=pool, driver=name, endpoints=tuple(endpoints), config=msgspec.to_builtins(section))
    return Journal(directory / file_name(kept), kept)


def kept_in(directory: Path) -> tuple[list[tuple[Path, Kept]], list[str]]:
    """Return the journals below a directory, and of those that can't be read why."""
    found, complaints = [], []
    try:
        paths = sorted(directory.glob("*.json"))
    except OSError as error:
        return [], [f"journal {directory}: can't be read: {error.strerror or error}"]
    for path in paths:
        try:
            found.append((path, read(path)))
        except FileNotFoundError:
            continue  # put back meanwhile
        except OSError as error:
            complaints.append(f"journal {path}: can't be read: {error.strerror or error}")
        except DriverError as error:
            complaints.append(str(error))
    return found, complaints


def from_journal(path: Path, kept: Kept) -> tuple[Driver, Journal]:
    """Return the driver that has written a journal, as the config had it then."""
    journal = Journal(path, kept)
    return make(section_of(path, kept), kept.endpoints, journal), journal


def section_of(path: Path, kept: Kept) -> AnyDriver:
    """Return the section of the config that a journal's driver had."""
    try:
        section: AnyDriver = msgspec.convert(kept.config, type=AnyDriver)
    except msgspec.ValidationError as error:
        raise DriverError(
            f"journal {path}: expected the config of a driver, found {kept.config}: {error}; look at the proxy's "
            "endpoints yourself, then remove the file"
        ) from error
    return section
