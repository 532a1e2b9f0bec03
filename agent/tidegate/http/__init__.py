# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 responses of the endpoints of pools: their totals since the start."""
