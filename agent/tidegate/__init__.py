# SPDX-License-Identifier: Apache-2.0
"""Tidegate: a node-level eBPF agent."""

from importlib.metadata import version as _version

__version__ = _version("tidegate")
