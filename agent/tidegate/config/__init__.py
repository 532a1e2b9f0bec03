# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: its keys, and how a file is read."""

from tidegate.config.keys import Config, Tls
from tidegate.config.reader import load, parse
from tidegate.config.units import Listen

__all__ = ["Config", "Listen", "Tls", "load", "parse"]
