# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are ejected, for how long and why: outlier detection and circuit state, without any I/O."""
