# SPDX-License-Identifier: Apache-2.0
"""The text of a file of nginx's servers: what is read of it, and that nothing but what is ours is ever changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.model.driver import Use
from tidegate.pools import nginx_config
from tidegate.pools.nginx_servers import edit, endpoint, generate, servers, statement_text, uses

pytestmark = pytest.mark.unit

ENDPOINTS = ("10.0.0.6:5000", "10.0.0.7:5000", "[fd00::8]:5000")
FIRST, SECOND, THIRD = ENDPOINTS
POOL = b"""\
# the pool
server 10.0.0.6:5000 weight=2;   # rack 1

server "10.0.0.7:5000"; server [fd00::8]:5000\tmax_conns=9 ;
keepalive 32;"""


def use_of(text: str | bytes, name: str = FIRST) -> Use:
    return uses(text if isinstance(text, bytes) else text.encode(), [name])[name]


def test_an_ejection_is_down_with_a_mark_and_nothing_else_changes() -> None:
    assert edit(POOL, ENDPOINTS, {FIRST: 0}) == POOL.replace(
        b"weight=2;   # rack 1", b"weight=2 down; # [tidegate: ejected]   # rack 1"
    )
    assert edit(POOL, ENDPOINTS, {SECOND: 0}) == POOL.replace(
        b'"10.0.0.7:5000";', b'"10.0.0.7:5000" down; # [tidegate: ejected, line split]\n'
    )


def test_half_open_is_a_limit_with_a_mark_unless_there_is_a_limit() -> None:
    half_open = edit(POOL, ENDPOINTS, {FIRST: 3, THIRD: 3})
    assert half_open == POOL.replace(b"weight=2;", b"weight=2 max_conns=3; # [tidegate: half open, max_conns=3]")
    assert uses(half_open, ENDPOINTS) == {FIRST: Use.TRIAL, SECOND: Use.ACTIVE, THIRD: Use.ACTIVE}
    assert edit(half_open, ENDPOINTS, {FIRST: 2}) == edit(POOL, ENDPOINTS, {FIRST: 2})
    assert edit(half_open, ENDPOINTS, {FIRST: 0}) == edit(POOL, ENDPOINTS, {FIRST: 0})
    assert edit(half_open, ENDPOINTS, {}) == POOL


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("server 10.0.0.6:5000;", Use.ACTIVE),
        ("server 10.0.0.6:5000 down;", Use.HELD),
        ("server 10.0.0.6:5000 weight=1 down backup;", Use.HELD),
        ("server 10.0.0.6:5000 down; # tidegate: ejected, says Ada", Use.HELD),
        ("server 10.0.0.6:5000 down; # [tidegate: ejected]", Use.EJECTED),
        ("server 10.0.0.6:5000 down ;\t# [tidegate: ejected]", Use.EJECTED),
        ("server 10.0.0.6:5000 down weight=3; # [tidegate: ejected]", Use.EJECTED),
        ("server 10.0.0.6:5000 down down; # [tidegate: ejected]", Use.HELD),
        ("server 10.0.0.6:5000; # [tidegate: ejected]", Use.ACTIVE),
        ("server 10.0.0.6:5000 max_conns=1; # [tidegate: half open, max_conns=1]", Use.TRIAL),
        ("server 10.0.0.6:5000 max_conns=2; # [tidegate: half open, max_conns=1]", Use.ACTIVE),
        ("server 10.0.0.6:5000 max_conns=1 down; # [tidegate: half open, max_conns=1]", Use.HELD),
        ("server 10.0.0.6:5000 down; server 10.0.0.6:5000;", Use.ACTIVE),
        ("server 10.0.0.6:5000 down; server 10.0.0.6:5000 down; # [tidegate: ejected]", Use.EJECTED),
        ("# server 10.0.0.6:5000;", Use.ABSENT),
        ("server 10.0.0.6:5000", Use.ABSENT),
        ("upstream x { server 10.0.0.6:5000; }", Use.ABSENT),
        ("server 10.0.0.6;", Use.ABSENT),
        ("server\n  '10.0.0.6:5000' # here\n  weight=2\n;", Use.ACTIVE),
        ("server 10.0.0.6:5000 'down';", Use.HELD),
        ("server name#1:80; server 10.0.0.6:5000;", Use.ACTIVE),
        ('server "a;b:80" down; server 10.0.0.6:5000;', Use.ACTIVE),
        ("server ${a}:80 down; server 10.0.0.6:5000;", Use.ACTIVE),
        ("", Use.ABSENT),
    ],
)
def test_whose_doing_it_is_that_one_is_out(text: str, use: Use) -> None:
    assert use_of(text) is use


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("server 10.0.0.6:5000 down down; # [tidegate: ejected]", "server 10.0.0.6:5000 down;"),
        ("server 10.0.0.6:5000 down w=1 down; # [tidegate: ejected] # x", "server 10.0.0.6:5000 down w=1; # x"),
        ("server 10.0.0.6:5000 down weight=3; # [tidegate: ejected]", "server 10.0.0.6:5000 weight=3;"),
        ("server 10.0.0.6:5000; # [tidegate: ejected]\n", "server 10.0.0.6:5000;\n"),
        (
            "server 10.0.0.6:5000 max_conns=1 max_conns=7; # [tidegate: half open, max_conns=1]",
            "server 10.0.0.6:5000 max_conns=7;",
        ),
        ("server 10.0.0.6:5000 down;   # [tidegate: ejected]\n", "server 10.0.0.6:5000;\n"),
    ],
)
def test_what_an_operator_has_done_to_what_is_ours_stays(text: str, left: str) -> None:
    assert edit(text.encode(), ENDPOINTS, {}) == left.encode()
    if use_of(text) is Use.HELD:
        assert edit(text.encode(), ENDPOINTS, {FIRST: 0}) == left.encode()


def test_other_lines_may_be_edited_while_one_is_out() -> None:
    ejected = edit(POOL, ENDPOINTS, {FIRST: 0, SECOND: 0})
    edited = ejected.replace(b"# the pool", b"# our pool\nserver 10.0.0.9:1;").replace(
        b"keepalive 32", b"keepalive 8"
    )
    expected = POOL.replace(b"# the pool", b"# our pool\nserver 10.0.0.9:1;").replace(
        b"keepalive 32", b"keepalive 8"
    )
    assert edit(edited, ENDPOINTS, {}) == expected


def test_only_endpoints_of_the_pool_are_let_back() -> None:
    ejected = edit(POOL, ENDPOINTS, {FIRST: 0, SECOND: 0})
    assert edit(ejected, [SECOND], {}) == edit(POOL, ENDPOINTS, {FIRST: 0})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"10.0.0.6:5000", "10.0.0.6:5000"),
        (b"10.0.0.6", "10.0.0.6:80"),
        (b"10.0.0.6:05000", "10.0.0.6:5000"),
        (b"[FD00:0::8]:5000", "[fd00::8]:5000"),
        (b"[fd00::8]", "[fd00::8]:80"),
        (b"fd00::8", None),
        (b"[10.0.0.6]:80", None),
        (b"10.0.0.256:80", None),
        (b"10.0.0.6:0", None),
        (b"10.0.0.6:70000", None),
        (b"10.0.0.6:80\n", None),
        (b"api.internal:80", None),
        (b"unix:/run/app.sock", None),
        (b"", None),
    ],
)
def test_names_of_servers(name: bytes, expected: str | None) -> None:
    assert endpoint(name) == expected


def test_a_new_file_has_all_endpoints() -> None:
    made = generate(ENDPOINTS)
    assert uses(made, ENDPOINTS) == dict.fromkeys(ENDPOINTS, Use.ACTIVE)
    assert made.startswith(b"#")
    assert statement_text(made, THIRD) == ["server [fd00::8]:5000;"]


# What may stand around, as nginx reads it: each piece is whole in itself.
SPACE = st.sampled_from(
    [b"", b" ", b"\t", b"\n", b"\r\n", b"\n\n  ", b" # note; server 10.0.0.6:5000;\n", b"\n# {\n"]
)
GAP = st.sampled_from([b" ", b"\t", b"\n", b"  ", b" # down;\n "])
NAMES = st.sampled_from(
    [b"10.0.0.6:5000", b'"10.0.0.7:5000"', b"'[fd00::8]:5000'", b"[FD00::8]:5000", b"\\10.0.0.7:5000"]
)
HOSTILE = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(
        lambda text: b'"' + text.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'
    ),
    st.sampled_from(
        [
            b"unix:/run/10.0.0.6:5000",
            b"10.0.0.6:5000.evil",
            b"a#down;".replace(b";", b"\\;"),
            b'"10.0.0.6:5000;down"',
            b'"# [tidegate: ejected]"',
            b"'x; # [tidegate: ejected]\n'",
            b"${10.0.0.6:5000}",
            b"10.0.0.6:5000\\ ",
            b"x$",
            b'"\\""',
        ]
    ),
)
PARAMETERS = st.lists(
    st.one_of(
        st.sampled_from([b"weight=2", b"backup", b"max_conns=4", b"down", b'"down"', b"max_fails=0"]), HOSTILE
    ),
    max_size=3,
)
OUT = st.dictionaries(st.sampled_from(ENDPOINTS), st.integers(0, 3))


@st.composite
def statement(draw: st.DrawFn, name: st.SearchStrategy[bytes]) -> bytes:
    words = [b"server", draw(name), *draw(PARAMETERS)]
    return (
        b"".join(word + draw(GAP) for word in words[:-1]) + words[-1] + draw(st.sampled_from([b"", b" ", b"\n"]))
    )


@st.composite
def parts(draw: st.DrawFn) -> list[tuple[bytes, str | None]]:
    """Draw statements without their ``;``, each with what stands before it and the endpoint that it is of."""
    found: list[tuple[bytes, str | None]] = []
    for _ in range(draw(st.integers(0, 5))):
        space = draw(SPACE)
        if draw(st.booleans()):
            name = draw(st.sampled_from([(b"10.0.0.6:5000", FIRST), (b'"10.0.0.7:5000"', SECOND)]))
            found.append((space + draw(statement(st.just(name[0]))), name[1]))
        else:
            found.append((space + draw(st.one_of(statement(HOSTILE), st.just(b"keepalive 32"))), None))
    return found


@settings(max_examples=1000)
@given(parts(), OUT, st.sampled_from([b"", b"\n", b" # end", b"\nserver 10.0.0.6:5000"]))
def test_hostile_names_never_change_another_statement(
    drawn: list[tuple[bytes, str | None]], out: Mapping[str, int], end: bytes
) -> None:
    text = b"".join(part + b";" for part, _ in drawn) + end
    before = servers(text)
    edited = edit(text, ENDPOINTS, out)
    after = servers(edited)
    assert [server.name for server in after] == [server.name for server in before]
    at = 0
    for part, name in drawn:
        at = edited.index(part, at) + len(part)  # each still stands there whole, in its order
        if name is None:
            assert edited[at : at + 1] == b";"
            assert not edited[at:].startswith(b"; # [tidegate")
    for old, new in zip(before, after, strict=True):
        values = [word.value for word in new.words[: len(old.words)]]
        assert values == [word.value for word in old.words]
        added = [word.value for word in new.words[len(old.words) :]]
        permits = None if old.use is Use.HELD or old.endpoint is None else out.get(old.endpoint)
        limited = any(value.startswith(b"max_conns=") for value in values[2:])
        expected = (
            [] if permits is None or (permits and limited) else [b"max_conns=%d" % permits if permits else b"down"]
        )
        assert added == expected
        assert new.marked is bool(expected)
    assert edit(edited, ENDPOINTS, {}) == text
    assert edit(edited, ENDPOINTS, out) == edited


@given(st.binary(max_size=200), OUT)
def test_any_bytes_come_back(data: bytes, out: Mapping[str, int]) -> None:
    plain = edit(data, ENDPOINTS, {})
    assert edit(edit(plain, ENDPOINTS, out), ENDPOINTS, {}) == plain


@given(
    st.lists(
        st.sampled_from(
            [
                *(b"server", b" ", b"10.0.0.6:5000", b"10.0.0.7:5000", b"down", b";", b"\n", b"#", b'"', b"'"),
                *(b"\\", b"{", b"}", b"$", b"max_conns=1", b"\r", b"x", b"\t"),
            ]
        ),
        max_size=40,
    ),
    st.lists(OUT, min_size=1, max_size=4),
)
def test_the_bytes_come_back_after_any_number_of_changes(
    pieces: list[bytes], outs: list[Mapping[str, int]]
) -> None:
    text = edited = b"".join(pieces)
    for out in outs:
        edited = edit(edited, ENDPOINTS, out)
        assert edited == edit(text, ENDPOINTS, out), "it doesn't matter what was out before"
    assert edit(edited, ENDPOINTS, {}) == text


CONFIG = """\
pid run/nginx.pid; # the pid
worker_shutdown_timeout 5s;
http {
    include conf.d/*.conf;
    keepalive_min_timeout 300ms;
}
"""


def test_what_a_config_says(tmp_path: Path) -> None:
    include = tmp_path / "upstreams" / "inventory.conf"
    main = tmp_path / "nginx.conf"
    main.write_text(CONFIG, encoding="ascii")
    (tmp_path / "conf.d").mkdir()
    pool = tmp_path / "conf.d" / "pool.conf"
    pool.write_text(
        f"upstream inventory {{ include upstreams/inventory.conf; keepalive 2; }}\n# include {include};\n"
        "upstream other { server 10.0.0.9; } include none.conf;",
        encoding="ascii",
    )
    found = nginx_config.settings(main, include)
    assert found == nginx_config.Settings(
        "run/nginx.pid", (("http", "inventory"),), (), True, True, (str(tmp_path / "none.conf"),)
    )
    pool.write_text("server { include upstreams/inventory.conf; }", encoding="ascii")
    main.write_text(CONFIG.replace("300ms", "0"), encoding="ascii")
    found = nginx_config.settings(main, include)
    assert (found.upstreams, found.elsewhere, found.has_keepalive_min_timeout) == ((), ("server",), False)


def test_a_config_that_includes_itself_or_is_broken_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    main = tmp_path / "nginx.conf"
    main.write_text("pid a; } } http { include nginx.conf; upstream x { 'broken", encoding="ascii")
    assert nginx_config.settings(main, tmp_path / "include").pid == "a"
