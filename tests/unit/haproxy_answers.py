# SPDX-License-Identifier: Apache-2.0
"""Answers of HAProxy 2.6, and a socket that gives any answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidegate.pools.haproxy_runtime import Backend, read_backend

STATE_HEADER = (
    "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state "
    "srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port "
    "srv_check_addr srv_agent_addr srv_agent_port"
)
STATES = f"""\
1
{STATE_HEADER}
3 inventory 1 a 127.0.0.1 2 0 1 1 1 1 0 2 0 0 0 0 - 15001 - 0 0 - - 0
3 inventory 2 b 127.0.0.1 2 8 10 10 1 1 0 2 0 0 0 0 - 15002 - 0 0 - - 0
3 inventory 4 c ::1 2 5 1 1 1 1 0 2 0 4 0 0 - 15003 - 0 0 - - 0
3 inventory 5 d 127.0.0.1 0 0 1 1 1 8 2 0 6 0 0 0 d.example 15004 - 0 0 - - 0
3 inventory 6 e - 0 32 1 1 1 1 0 2 0 0 0 0 e.example 15005 - 0 0 - - 0

"""
TABLES = "# table: st, type: ip, size:102400, used:0\n\n"
STATISTICS = """\
# pxname,svname,slim,status,iid,sid,type,last_chk,cookie,
inventory,a,,no check,3,1,2,,,
inventory,b,7,DRAIN,3,2,2,,,
inventory,c,,MAINT,3,4,2,,,
inventory,d,,DOWN,3,5,2,"says ""no"", twice
inventory,a,1,UP,3,1,2",,
inventory,e,,MAINT,3,6,2,,,
inventory,BACKEND,200,UP,3,0,1,,,

"""


def picture(text: str = TABLES + STATES + STATISTICS) -> Backend:
    found = read_backend(text, "inventory")
    assert found is not None
    return found


@contextmanager
def answering(path: Path, answer: bytes | None) -> Iterator[None]:
    """Have one connection read a line and be answered so; None: it is kept open without a word."""
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                if answer is None:
                    ended.wait(10)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
