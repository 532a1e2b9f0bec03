# SPDX-License-Identifier: Apache-2.0
"""Ties a process of the lab to the lab: it ends when the lab does, however that happened."""

from __future__ import annotations

import os
import select
import sys
import threading


def end_with_the_lab() -> None:
    """End this process at once when the other end of its stdin is gone, whatever it is doing then."""
    poll = select.poll()
    poll.register(sys.stdin.fileno(), 0)  # POLLHUP is always reported

    def watch() -> None:
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
