# SPDX-License-Identifier: Apache-2.0
"""Tidegate: a node-level eBPF agent."""

__version__ = "0.1.0"
