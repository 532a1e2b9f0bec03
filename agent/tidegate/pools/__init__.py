# SPDX-License-Identifier: Apache-2.0
"""What keeps callers from an endpoint that is out: one driver for each way."""
