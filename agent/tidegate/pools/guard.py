# SPDX-License-Identifier: Apache-2.0
"""The lease's child: reads its parent's word from stdin, and becomes a command when there is none for too long.

``guard.py SECONDS COMMAND...``, with nothing but the interpreter's own modules.
"""

import os
import select
import signal
import sys
import time

#: What the parent says: that it lives, and that all is done.
WORD, DONE = b".", b"q"


def main() -> None:
    """Wait for the parent's end, for a silence, or for its last word."""
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    # Whoever ends the agent by a signal to all of its processes means it, not what puts back what it did.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    heard = time.monotonic()
    while (left := heard + seconds - time.monotonic()) > 0:
        if not select.select([0], [], [], left)[0]:
            continue
        said = os.read(0, 4096)
        if DONE in said:
            return
        if not said:  # it is dead; another agent may come yet
            time.sleep(max(heard + seconds - time.monotonic(), 0.0))
            break
        heard = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
