# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: its keys, how a file is read, and how it is printed."""

from tidegate.config.keys import Config, Tls
from tidegate.config.printer import schema, to_builtins, to_yaml
from tidegate.config.reader import load, parse
from tidegate.config.units import Listen

__all__ = ["Config", "Listen", "Tls", "load", "parse", "schema", "to_builtins", "to_yaml"]
