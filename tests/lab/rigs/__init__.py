# SPDX-License-Identifier: Apache-2.0
"""Each driver before the real thing that it drives, for the conformance suite: one module for one driver."""
