# SPDX-License-Identifier: Apache-2.0
"""nginx's config as upstreams, limits and findings; it is read with crossplane, and includes are followed here.

crossplane reads one file at a time: its own way through includes has no limit and no mind for fragments.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from tidegate.errors import ConfigError

_FILES, _DEPTH, _BYTES = 500, 20, 4 << 20
_RATE = re.compile(r"rate=([1-9][0-9]{0,8})r/([sm])")
_BEHIND = ("set_real_ip_from", "real_ip_header")


class Directive(NamedTuple):
    """One directive with its place; ``block`` is None where it has none."""

    name: str
    args: tuple[str, ...]
    place: str
    block: list[Directive] | None = None

    def first(self) -> str:
        """Return the first argument, or nothing."""
        return self.args[0] if self.args else ""


class Upstream(NamedTuple):
    """An upstream block: the endpoints that have an address, and what is to be said of it."""

    name: str
    place: str
    endpoints: tuple[str, ...]
    keepalive: int
    notes: tuple[str, ...]


class Limit(NamedTuple):
    """A limit_req of a source's address, at the ports of its server."""

    place: str
    ports: tuple[int, ...]
    number: int
    unit: str
    burst: int
    where: str


class Read(NamedTuple):
    """What was found in a config."""

    upstreams: list[Upstream]
    limits: list[Limit]
    notes: list[str]
    findings: list[str]


def read(file: Path) -> Read:
    """Read a config with its includes; raises ConfigError with the place of what is wrong."""
    found = _Findings()
    try:
        found.level(_Files(file).directives(file, 0), ())
    except RecursionError as error:
        raise ConfigError([f"{file}:1: blocks are nested too deeply"]) from error
    return Read(
        found.upstreams, found.limits, list(dict.fromkeys(found.notes)), list(dict.fromkeys(found.findings))
    )


class _Files:
    """Reads files until there are too many or too much."""

    def __init__(self, main: Path) -> None:
        self._directory, self._files, self._bytes = main.parent, 0, 0

    def directives(self, file: Path, depth: int, place: str = "") -> list[Directive]:
        from crossplane import parse  # noqa: PLC0415 - of no use to the agent

        place = place or str(file)
        self._files += 1
        if self._files > _FILES or depth > _DEPTH:
            raise ConfigError([f"{place}: more than {_FILES} includes, or {_DEPTH} within each other"])
        try:
            if not file.is_file():
                raise ConfigError([f"{place}: can't be read: {file} is no file"])
            self._bytes += file.stat().st_size
            if self._bytes > _BYTES:
                raise ConfigError([f"{place}: more than {_BYTES >> 20} MiB with all includes"])
            file.open("rb").close()
        except (OSError, ValueError) as error:
            raise ConfigError([f"{place}: can't be read: {error}"]) from error
        payload = parse(str(file), single=True, check_ctx=False, check_args=False)
        if payload["errors"]:
            raise ConfigError([_complaint(file, each) for each in payload["errors"]])
        return list(self._followed(payload["config"][0]["parsed"], file, depth))

    def _followed(self, parsed: list[dict[str, Any]], file: Path, depth: int) -> Iterator[Directive]:
        for each in parsed:
            name, args, place = str(each["directive"]), tuple(each["args"]), f"{file}:{each['line']}"
            if name == "include" and args:
                if "\0" in args[0]:
                    raise ConfigError([f"{place}: expected a file, found a name with a null byte"])
                pattern = str(self._directory / args[0])
                matches = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
                for match in matches:
                    yield from self.directives(Path(match), depth + 1, place)
            else:
                block = list(self._followed(each["block"], file, depth)) if "block" in each else None
                yield Directive(name, args, place, block)


def _complaint(file: Path, error: dict[str, Any]) -> str:
    text = str(error["error"]).partition(f" in {file}")[0] or "unexpected end of file"
    return f"{file}:{error['line'] or 1}: {text}"


class _Findings:
    """Walks the levels of a config, from the outermost in."""

    def __init__(self) -> None:
        self.upstreams: list[Upstream] = []
        self.limits: list[Limit] = []
        self.notes: list[str] = []
        self.findings: list[str] = []
        self._zones: dict[str, tuple[str, int, str]] = {}

    def level(self, block: list[Directive], outer: tuple[list[Directive], ...]) -> None:
        """Read what stands here, then the blocks within: an upstream may stand behind its use."""
        levels = (*outer, block)
        for each in block:
            if each.name == "limit_req_zone":
                self._zone(each)
        for each in block:
            self._directive(each, levels)
        for each in block:
            if each.block is not None and each.name in (
                "http",
                "stream",
                "server",
                "location",
                "if",
                "limit_except",
            ):
                self.level([Directive("_block", (each.name, *each.args), each.place), *each.block], levels)

    def _directive(self, each: Directive, levels: tuple[list[Directive], ...]) -> None:
        if each.name == "upstream" and each.block is not None:
            self.upstreams.append(_upstream(each))
        elif each.name == "limit_conn":
            self.notes.append(f"{each.place}: not taken: limit_conn; connections at a time aren't limited here")
        elif each.name in _BEHIND:
            self.notes.append(
                f"{each.place}: {each.name}: behind a balancer XDP sees the balancer's address: "
                "allow it, and limit there"
            )
        elif each.name == "limit_req":
            self._limit(each, levels)
        elif each.name in ("proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass"):
            self._passed(each, levels)

    def _zone(self, each: Directive) -> None:
        zone = next((arg[5:].partition(":")[0] for arg in each.args if arg.startswith("zone=")), "")
        rate = next((match for match in map(_RATE.fullmatch, each.args) if match), None)
        if rate is None:
            self.notes.append(f"{each.place}: not taken: limit_req_zone without a rate that can be read")
        elif each.first() not in ("$binary_remote_addr", "$remote_addr"):
            self.notes.append(
                f"{each.place}: not taken: limit_req_zone by {each.first()}: XDP knows addresses alone"
            )
        else:
            self._zones[zone] = (each.place, int(rate[1]), rate[2])

    def _limit(self, each: Directive, levels: tuple[list[Directive], ...]) -> None:
        where, status = _where(levels), _inherited(levels, "limit_req_status")
        if not status or status[0].first() == "503":
            self.findings.append(
                f"{each.place}: {where}: a rejection is answered with 503, like a backend's failure: "
                "limit_req_status 429"
            )
        given = dict(arg.partition("=")[::2] for arg in each.args)
        zone = self._zones.get(given.get("zone", ""))
        ports = _ports(levels)
        if zone is None or not ports:
            self.notes.append(
                f"{each.place}: not taken: limit_req of {where}: no zone by address, or no server around it"
            )
            return
        burst = given.get("burst", "0")
        number = int(burst) if burst.isascii() and burst.isdigit() and len(burst) < 10 else 0
        self.limits.append(Limit(each.place, ports, zone[1], zone[2], number, where))

    def _passed(self, each: Directive, levels: tuple[list[Directive], ...]) -> None:
        target, where = each.first(), _where(levels)
        if "$" in target:
            self.notes.append(
                f"{each.place}: {where}: {target} has variables: its upstream is known to nginx alone"
            )
            return
        if each.name != "proxy_pass" or not target.startswith(("http://", "https://")):
            return
        host = target.partition("://")[2].partition("/")[0]
        upstream = next(
            (up for up in _all(levels) if up.name == "upstream" and up.first().lower() == host.lower()), None
        )
        if upstream is None:
            return
        if _upstream(upstream).keepalive:
            version = _inherited(levels, "proxy_http_version")
            headers = _inherited(levels, "proxy_set_header")
            missing = [] if version and version[-1].first() != "1.0" else ["proxy_http_version 1.1"]
            if not any(len(h.args) == 2 and h.args[0].lower() == "connection" and not h.args[1] for h in headers):
                missing.append('proxy_set_header Connection ""')
            if missing:
                self.findings.append(
                    f"{each.place}: {where}: lacks {' and '.join(missing)}: the keep-alive of {host} does nothing "
                    "(before nginx 1.29.7, stable 1.30)"
                )
        if not _inherited(levels, "limit_req"):
            self.findings.append(f"{each.place}: {where}: has no limit_req")


def _inherited(levels: tuple[list[Directive], ...], name: str) -> list[Directive]:
    """Return the directives of the innermost level that has any: nginx doesn't add those of outer levels."""
    each = ([directive for directive in level if directive.name == name] for level in reversed(levels))
    return next((found for found in each if found), [])


def _all(levels: tuple[list[Directive], ...]) -> Iterator[Directive]:
    for level in levels:
        yield from level


def _where(levels: tuple[list[Directive], ...]) -> str:
    marks = [level[0].args for level in levels if level and level[0].name == "_block"]
    locations = [mark for mark in marks if mark[0] == "location"]
    return " ".join((locations or marks or [("the file",)])[-1])


def _ports(levels: tuple[list[Directive], ...]) -> tuple[int, ...]:
    """Return the TCP ports of the server around, or of the servers that inherit from here."""
    around = [level for level in levels if level and level[0].name == "_block" and level[0].args[0] == "server"]
    heirs = [each.block for each in levels[-1] if each.name == "server" and each.block is not None]
    servers = around or [block for block in heirs if not any(each.name == "limit_req" for each in block)]
    return tuple(dict.fromkeys(port for server in servers for port in _listened(server)))


def _listened(server: list[Directive]) -> Iterator[int]:
    """Yield the ports of a server; ranges and sockets are none, and a server that names none has 80."""
    for each in [each for each in server if each.name == "listen"] or [Directive("listen", ("80",), "")]:
        listen = each.first()
        if listen.startswith("unix:") or "quic" in each.args or re.search(r"[0-9]+-[0-9]+$", listen):
            continue
        last = listen.rpartition(":")[2]
        port = int(last) if last.isascii() and last.isdigit() and len(last) < 6 else 80
        if 0 < port < 65536:
            yield port


def _upstream(block: Directive) -> Upstream:
    endpoints: list[str] = []
    notes: list[str] = []
    keepalive = 0
    for each in block.block or []:
        if each.name == "keepalive" and each.first().isascii() and each.first().isdigit():
            keepalive = int(each.first()[:9])
        elif each.name == "server" and each.args:
            endpoint = _endpoint(each.first())
            if endpoint is None:
                notes.append(f"{each.place}: not taken: server {each.first()} is no ADDRESS:PORT")
            elif endpoint not in endpoints:
                endpoints.append(endpoint)
            if each.args[1:]:
                notes.append(f"{each.place}: the proxy's own: {each.first()} {' '.join(each.args[1:])}")
    return Upstream(block.first(), block.place, tuple(endpoints), keepalive, tuple(notes))


def _endpoint(text: str) -> str | None:
    host, _, port = text.rpartition(":") if re.search(r"(?:\]|^[^:]*):[0-9]+$", text) else (text, "", "80")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if len(port) > 5 or not 0 < int(port) < 65536 or address.is_unspecified or address.is_multicast or "%" in host:
        return None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"
