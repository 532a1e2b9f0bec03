# SPDX-License-Identifier: Apache-2.0
"""The limiter at the network card: policy to kernel maps, modes, bans, simulation."""
