# SPDX-License-Identifier: Apache-2.0
"""The types that flow through the agent; no logic beyond arithmetic on themselves, no I/O."""
