# SPDX-License-Identifier: Apache-2.0
"""One module per signal: kernel bytes become records; each declares its fields, units and help once."""
