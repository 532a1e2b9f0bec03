# SPDX-License-Identifier: Apache-2.0
"""The local control socket: JSON lines between the agent and the commands on its node (docs/control.md)."""
