# SPDX-License-Identifier: Apache-2.0
"""CPU, memory and stalls of each service, and who was killed for want of memory."""
