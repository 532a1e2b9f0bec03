# SPDX-License-Identifier: Apache-2.0
"""The limiter at the network card: policy to kernel maps, modes, bans, simulation."""

#: What is asked of it over the control socket.
METHODS = tuple(f"ratelimit.{name}" for name in ("status", "top", "ban", "unban", "allow", "mode"))
