# SPDX-License-Identifier: Apache-2.0
"""Requests of block devices since the start, per device and per service."""
