# SPDX-License-Identifier: Apache-2.0
"""Drives Envoy by the EDS file of a cluster: who is ejected has an unhealthy ``health_status`` there.

The journal has ``base``, the file as it would be without us, in base64; ``written``, the digests of what we wrote
since; ``found``, what the file said of those who are out, at each place; ``link`` and ``made`` where a link is
exchanged, see :mod:`tidegate.pools.envoy_file`. What others have written meanwhile is the new base, but that who
still has our status there is still ours.

Half open an endpoint is as it was found: an EDS file has no count of requests.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from tidegate.config import pools as config
from tidegate.errors import DriverError
from tidegate.model.driver import Use
from tidegate.pools import envoy_admin
from tidegate.pools.driver import Discovery, Exchange, Wanted
from tidegate.pools.envoy_admin import Admin, Host
from tidegate.pools.envoy_assignment import Assignment
from tidegate.pools.envoy_file import EdsFile, Seen, as_link
from tidegate.pools.journal import Journal

#: What a journal has room for, in base64.
_LARGEST = 8 << 20
_Found = Mapping[str, list[str | None]]


class _Look(NamedTuple):
    """The file as it stands and as it would be without us, who is ours in it, and whether others wrote it last."""

    seen: Seen
    now: Assignment
    base: Assignment
    ours: _Found
    is_foreign: bool


class EnvoyDriver:
    """One cluster in one EDS file."""

    sticks = True
    period = 1.0

    def __init__(self, endpoints: Iterable[str], section: config.EnvoyDriver, journal: Journal) -> None:
        self._endpoints, self._section, self._journal = tuple(endpoints), section, journal
        self._status = section.eject.upper()
        self._admin = Admin(section.admin) if section.admin else None
        self._file = EdsFile(section.eds, section.watched_directory)
        self._name: str | None = None
        #: Whom this driver has let back, until Envoy says so too.
        self._returning: set[str] = set()
        self._known: dict[bytes, Assignment] = {}
        self.target = f"envoy {section.eds}" + (f" cluster {section.cluster}" if section.cluster else "")

    def discover(self) -> Discovery:
        """Look at the file, and at what Envoy has of it."""
        warnings: list[str] = []
        refusals: list[str] = []
        cluster, total = self._section.cluster, len(self._endpoints)
        try:
            refusal = self._file.refusal()
            refusals += [refusal] if refusal else []
            now = self._look().now
            cluster, total = now.cluster, len(now.places)
            if now.resources > 1:
                warnings.append(
                    f"{self._section.eds}: has {now.resources} resources, and Envoy rejects an EDS file with more "
                    "than one ('Unexpected EDS resource length'); give each cluster a file of its own"
                )
            missing = [endpoint for endpoint in self._endpoints if endpoint not in now.places]
            if missing:
                warnings.append(f"{self._section.eds}: has no {', '.join(missing)}, which the pool has")
        except DriverError as error:
            refusals.append(str(error))
        if self._admin is None:
            warnings.append(
                f"{self.target}: without 'admin' it isn't known what Envoy makes of the file; set it to what "
                "admin.address of Envoy's config says"
            )
            return Discovery("", tuple(warnings), tuple(refusals))
        version = self._admin.version()
        if cluster is not None:
            warnings += self._worth_a_look(self._admin, cluster, total)
        return Discovery(version, tuple(warnings), tuple(refusals))

    def read(self) -> dict[str, Use]:
        """Ask Envoy, or without its admin interface the file."""
        look = self._look()
        self._let_go(look)
        if self._admin is None:
            return {endpoint: self._use_by_file(look, endpoint) for endpoint in self._endpoints}
        hosts = self._hosts(self._admin, look.now.cluster)
        self._returning -= {endpoint for endpoint, host in hosts.items() if not host.is_out}
        return {endpoint: self._use(look, endpoint, hosts.get(endpoint)) for endpoint in self._endpoints}

    def apply(self, out: Wanted) -> list[Exchange]:
        """Write the file in which these are out, unless it is that already."""
        look = self._look()
        ejected = [
            endpoint
            for endpoint in self._endpoints
            if out.get(endpoint) == 0 and endpoint in look.base.places and not look.base.is_out(endpoint)
        ]
        target = self._keep(look.base.with_out(ejected, self._status))
        is_so = not look.is_foreign and target.text == look.seen.text
        if is_so and (ejected or not self._journal.entries):
            return []
        refusal = self._file.refusal()
        if refusal is not None:
            raise DriverError(f"{self.target}: {refusal}")
        if ejected:
            self._write(look, target, {endpoint: look.base.statuses(endpoint) for endpoint in ejected})
        else:
            self._put_back(look)
        back = look.ours.keys() - {*ejected}
        self._returning = (self._returning | back) - {*ejected}
        words = [f"{endpoint}: {self._status}" for endpoint in ejected if endpoint not in look.ours]
        words += [f"{endpoint}: as found" for endpoint in sorted(back)]
        return [Exchange(f"{self._section.eds}: {word}", "written") for word in words or ["as it was"]]

    def restore(self) -> list[Exchange]:
        """Put the file back: to the byte, unless others have written it meanwhile."""
        return self.apply({})

    def close(self) -> None:
        """Hold nothing."""

    # The file and the journal.

    def _look(self) -> _Look:
        journal = self._journal
        seen = self._file.look(as_link(journal.get("link")), journal.get("made", ()))
        text = seen.text
        if "base" not in journal:
            now = self._parsed(text)
            return _Look(seen, now, now, {}, is_foreign=False)
        base = base64.b64decode(journal["base"])
        is_foreign = _digest(text) not in journal["written"]
        if not is_foreign and seen.found is not None and seen.found != base:
            text, is_foreign = seen.found, True  # others have written the file that our link hides
        now = self._parsed(text)
        ours = {e: found for e, found in journal["found"].items() if now.carries(e, self._status, found)}
        return _Look(seen, now, now.with_found(ours) if is_foreign else self._parsed(base), ours, is_foreign)

    def _parsed(self, text: bytes) -> Assignment:
        found = self._known.get(text)
        return self._keep(Assignment(self._section.eds, text, self._section.cluster)) if found is None else found

    def _keep(self, assignment: Assignment) -> Assignment:
        """Have the last ones at hand: the same file is read again and again."""
        self._known = dict([*self._known.items(), (assignment.text, assignment)][-2:])
        return assignment

    def _write(self, look: _Look, target: Assignment, found: _Found) -> None:
        """Write a file in which some are out; first what can't be told from it any more goes to the journal."""
        journal, digest = self._journal, _digest(target.text)
        if len(look.base.text) > _LARGEST:
            raise DriverError(
                f"{self._section.eds}: expected {_LARGEST >> 20} MiB at most, found more, for which a journal has "
                "no room; give each cluster a file of its own"
            )
        before, made = list(journal.get("made", ())), []
        if look.seen.link is not None:
            made = [str(look.seen.link.beside(digest))]
        stays = [] if look.is_foreign or "base" not in journal else [_digest(look.seen.text)]
        journal.put(
            {
                "base": base64.b64encode(look.base.text).decode(),
                "written": [*stays, digest],
                "found": {**look.ours, **found},
                "link": None if look.seen.link is None else msgspec.to_builtins(look.seen.link),
                "made": sorted({*before, *made}),
            }
        )
        self._file.write(look.seen, target.text, digest, before)
        self._file.remove(path for path in before if path not in made)
        journal.put({"found": dict(found), "made": made})

    def _put_back(self, look: _Look) -> None:
        made = list(self._journal.get("made", ()))
        if look.is_foreign or look.seen.found is not None or look.seen.text != look.base.text:
            self._file.put_back(look.seen, look.base.text, made)
        self._file.remove(made)
        self._journal.clear()

    def _let_go(self, look: _Look) -> None:
        """Forget whom an operator has taken out on top of us: he is the operator's from now on."""
        found = self._journal.get("found", {})
        theirs = {e for e in found if e not in look.ours and look.now.is_out(e)}
        if theirs:
            with self._journal.turn():
                found = self._journal.get("found", {})
                self._journal.put({"found": {e: found[e] for e in found if e not in theirs}})

    # What Envoy says.

    def _hosts(self, admin: Admin, assignment: str) -> Mapping[str, Host]:
        hosts = admin.hosts(self._name or assignment)
        if hosts is None:
            cluster = admin.cluster(assignment, self._section.eds)
            self._name = cluster.name if cluster else None
            hosts = admin.hosts(self._name) if self._name else None
        if hosts is None:
            raise DriverError(self._lack(assignment))
        return hosts

    def _lack(self, assignment: str) -> str:
        return (
            f"{self.target}: Envoy has no cluster with the endpoints of {assignment}; add one of 'type: EDS' that "
            f"reads {self._section.eds}, or correct 'cluster'"
        )

    def _use(self, look: _Look, endpoint: str, host: Host | None) -> Use:
        if host is None:
            return Use.ABSENT
        if not host.is_out:
            return Use.FAILED if host.has_failed else Use.ACTIVE
        if endpoint in look.ours or endpoint in self._returning:
            return Use.EJECTED
        # Where others have taken our status out of the file without Envoy noticing, it is to be written again.
        is_lost = endpoint in self._journal.get("found", {}) and not look.now.is_out(endpoint)
        return Use.ACTIVE if is_lost else Use.HELD

    def _use_by_file(self, look: _Look, endpoint: str) -> Use:
        if endpoint not in look.now.places:
            return Use.ABSENT
        if endpoint in look.ours:
            return Use.EJECTED
        return Use.HELD if look.now.is_out(endpoint) else Use.ACTIVE

    def _worth_a_look(self, admin: Admin, assignment: str, total: int) -> list[str]:
        cluster = admin.cluster(assignment, self._section.eds)
        if cluster is None:
            return [self._lack(assignment)]
        self._name = cluster.name
        found = []
        if cluster.file is None or os.path.realpath(cluster.file) != os.path.realpath(self._section.eds):
            found.append(
                f"{self.target}: Envoy's cluster {cluster.name} has its endpoints from "
                f"{cluster.file or 'elsewhere, not from a file'}; have it be of 'type: EDS' with "
                f"path_config_source: {{path: {self._section.eds}}}"
            )
        if cluster.watched != self._section.watched_directory:
            found.append(
                f"{self.target}: watched_directory is {cluster.watched or 'not set'} of Envoy's cluster "
                f"{cluster.name}, and {self._section.watched_directory or 'not set'} of the driver; Envoy may not "
                "notice changes, have both be the same"
            )
        return found + envoy_admin.worth_a_look(cluster, total)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
