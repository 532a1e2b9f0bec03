# SPDX-License-Identifier: Apache-2.0
"""The text of an EDS file as endpoints and their health, and the text in which some are out; pure.

A file is a DiscoveryResponse of ClusterLoadAssignments as Envoy reads it: names with underscores or in camel case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tidegate.config import units
from tidegate.errors import DriverError
from tidegate.pools import envoy_text
from tidegate.pools.envoy_text import Edit, Path, text_of

#: envoy/config/core/v3/health_check.proto, HealthStatus, in its order.
_STATUSES = ("UNKNOWN", "HEALTHY", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")
#: What keeps requests from an endpoint.
OUT = frozenset({"UNHEALTHY", "DRAINING", "TIMEOUT"})
_KEY = "health_status"
_ASSIGNMENT = "envoy.config.endpoint.v3.ClusterLoadAssignment"


class Place(NamedTuple):
    """Where an endpoint stands in the file: the key of its health, and what that says; None for nothing."""

    path: Path
    key: str
    status: str | None


class Assignment:
    """One cluster of an EDS file; ``places`` by ``ADDRESS:PORT``, several where the file has an endpoint twice.

    Raises DriverError where the file isn't one or doesn't tell which cluster is meant. ``tree`` is that of the
    text, where it is known already.
    """

    def __init__(self, name: str, text: bytes, cluster: str | None, tree: Any = None) -> None:
        self.name, self.text, self._asked = name, text, cluster
        try:
            self._as_json = envoy_text.is_json(name)
            tree = envoy_text.parse(text, as_json=self._as_json) if tree is None else tree
            number, resource = _resource(tree, cluster)
            #: Envoy 1.40 rejects a file that has more than one.
            self.resources = len(tree["resources"])
            self.cluster = text_of(_get(resource, "cluster_name")) or ""
            self.places: dict[str, tuple[Place, ...]] = {}
            for endpoint, place in _places(resource, ("resources", number)):
                self.places[endpoint] = (*self.places.get(endpoint, ()), place)
        except ValueError as error:
            raise DriverError(
                f"{name}: expected an EDS file, a DiscoveryResponse with a ClusterLoadAssignment, found: {error}; "
                "it is left as it is"
            ) from error

    def statuses(self, endpoint: str) -> list[str | None]:
        """Return what the file says of an endpoint, at each place."""
        return [place.status for place in self.places.get(endpoint, ())]

    def is_out(self, endpoint: str) -> bool:
        """Tell whether the file keeps requests from an endpoint."""
        statuses = self.statuses(endpoint)
        return bool(statuses) and all(status in OUT for status in statuses)

    def carries(self, endpoint: str, status: str, found: Iterable[str | None]) -> bool:
        """Tell whether an endpoint has a status wherever it was not out when it was found."""
        ours = [now for now, then in _paired(self.statuses(endpoint), found) if then not in OUT]
        return bool(ours) and all(now == status for now in ours)

    def with_out(self, endpoints: Iterable[str], status: str) -> Assignment:
        """Return the file with a status for these, wherever they aren't out yet."""
        return self._edited(
            Edit(place.path, place.key, status)
            for endpoint in endpoints
            for place in self.places.get(endpoint, ())
            if place.status not in OUT
        )

    def with_found(self, found: Mapping[str, Iterable[str | None]]) -> Assignment:
        """Return the file with what was found at the places of these."""
        return self._edited(
            Edit(place.path, place.key, then)
            for endpoint, statuses in found.items()
            for place, (now, then) in zip(
                self.places.get(endpoint, ()), _paired(self.statuses(endpoint), statuses), strict=True
            )
            if now != then
        )

    def _edited(self, edits: Iterable[Edit]) -> Assignment:
        changes = [*edits]
        if not changes:
            return self
        try:
            text, tree = envoy_text.edited(self.text, changes, as_json=self._as_json)
        except ValueError as error:
            raise DriverError(f"{self.name}: can't be changed, and is left as it is: {error}") from error
        return Assignment(self.name, text, self._asked, tree)


def _paired(now: list[str | None], then: Iterable[str | None]) -> Iterator[tuple[str | None, str | None]]:
    """Pair the places of now with those of then; one that has come since was found without a status."""
    known = [*then]
    return zip(now, [*known[: len(now)], *[None] * (len(now) - len(known))], strict=True)


def _resource(tree: Any, cluster: str | None) -> tuple[int, dict[str, Any]]:
    """Return one ClusterLoadAssignment, and its number among the resources."""
    resources = tree.get("resources") if isinstance(tree, dict) else None
    if not isinstance(resources, list) or not all(isinstance(resource, dict) for resource in resources):
        raise ValueError("no list 'resources'")
    kinds = [text_of(resource.get("@type")) or "" for resource in resources]
    found = [
        (number, resource)
        for number, resource in enumerate(resources)
        if kinds[number].rpartition("/")[2] == _ASSIGNMENT
    ]
    names = [text_of(_get(resource, "cluster_name")) or "" for _, resource in found]
    if cluster is None:
        if len(found) != 1:
            raise ValueError(f"{len(found)} clusters ({', '.join(names)}); name one in 'cluster' of the driver")
        return found[0]
    if names.count(cluster) != 1:
        raise ValueError(f"cluster {cluster} {names.count(cluster)} times among: {', '.join(names) or 'none'}")
    return found[names.index(cluster)]


def _places(resource: dict[str, Any], above: Path) -> Iterator[tuple[str, Place]]:
    for locality, at in _items(resource, "endpoints", above):
        for member, path in _items(locality, "lb_endpoints", at):
            endpoint = _endpoint(_get(_get(_get(member, "endpoint"), "address"), "socket_address"))
            if endpoint is not None:
                yield endpoint, Place(path, _spelled(member, _KEY), _status(_get(member, _KEY)))


def _items(mapping: Any, key: str, above: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    items = _get(mapping, key)
    if items is None:
        return
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"'{key}' that is no list of keys with values")
    path = (*above, _spelled(mapping, key))
    for number, item in enumerate(items):
        yield item, (*path, number)


def _spelled(mapping: Any, key: str) -> str:
    """Return how a mapping spells a key."""
    camel = _camel(key)
    return camel if isinstance(mapping, dict) and camel in mapping and key not in mapping else key


def _camel(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(word.capitalize() for word in others)


def _get(mapping: Any, key: str) -> Any:
    if not isinstance(mapping, dict):
        return None
    camel = _camel(key)
    if camel != key and key in mapping and camel in mapping:
        raise ValueError(f"both {key} and {camel}")
    value = mapping.get(_spelled(mapping, key))
    return None if envoy_text.is_null(value) else value


def _status(value: Any) -> str | None:
    text = text_of(value)
    if text is None and value is None:
        return None
    if text is not None and text.isascii() and text.isdigit() and int(text) < len(_STATUSES):
        return _STATUSES[int(text)]
    if text not in _STATUSES:
        raise ValueError(f"{_KEY} {text}, where Envoy has {', '.join(_STATUSES)}")
    return text


def _endpoint(address: Any) -> str | None:
    """Return an address as the config writes it; None for what is none: a Unix socket, a name, a named port."""
    host, port = text_of(_get(address, "address")), text_of(_get(address, "port_value"))
    if host is None or port is None:
        return None
    try:
        return units.endpoint(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except ValueError:
        return None
