# SPDX-License-Identifier: Apache-2.0
"""Two samples and a duration become the immutable rows of a view; the only place where rates are computed."""

from __future__ import annotations

from tidegate.rates.disk import DiskRates
from tidegate.rates.tcp import Rates

__all__ = ["DiskRates", "Rates"]
