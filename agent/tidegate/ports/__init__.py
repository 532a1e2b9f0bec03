# SPDX-License-Identifier: Apache-2.0
"""Who holds the local ports towards each upstream, and for how long they will last."""
