# SPDX-License-Identifier: Apache-2.0
"""Where an endpoint is: the configured place of the smallest network that its address is in."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

#: Endpoints whose place is kept; ipaddress takes 3 us for each.
_KEPT = 10_000


class Locations:
    """The places of endpoints by networks: ``{"10.0.0.0/8": "frankfurt"}``."""

    def __init__(self, names: Mapping[str, str]) -> None:
        networks = [(ipaddress.ip_network(network), name) for network, name in names.items()]
        self._networks = sorted(networks, key=lambda found: -found[0].prefixlen)
        self._known: dict[str, str] = {}

    def of(self, endpoint: str) -> str:
        """Return the place of ``10.0.0.6:5000`` or ``[fd00::6]:5000``; empty where none is configured for it."""
        if not self._networks:
            return ""
        found = self._known.get(endpoint)
        if found is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            found = self._known[endpoint] = self._find(endpoint)
        return found

    def _find(self, endpoint: str) -> str:
        try:
            address = ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]"))
        except ValueError:  # a sum of endpoints, or a port of this node
            return ""
        return next((name for network, name in self._networks if address in network), "")
