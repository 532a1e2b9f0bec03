# SPDX-License-Identifier: Apache-2.0
"""The limiter at the network card: policy to kernel maps, modes, bans, simulation."""

#: The keys of ``rate_limit`` that a running agent doesn't change.
STARTED_WITH = ("interfaces", "generic", "feed", "max_sources", "sketch_cells", "max_prefixes", "max_bans")

#: What is asked of it over the control socket.
METHODS = tuple(f"ratelimit.{name}" for name in ("status", "top", "ban", "unban", "allow", "mode"))
