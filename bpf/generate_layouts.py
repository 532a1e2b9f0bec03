# SPDX-License-Identifier: Apache-2.0
"""Writes agent/tidegate/kernel/layouts.py from the BTF of types.bpf.o.

Usage: python bpf/generate_layouts.py types.bpf.o > layouts.py

Each named enum becomes an IntEnum, each struct a NamedTuple (TcpKey) with its layout (TCP_KEY). A scalar is
an int; an array is bytes with a layout of its elements (TCP_COUNTS_FAILURES), a struct in a struct is bytes too,
and so is an array of structs: each has its own layout.
Padding is explicit in C.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

BTF = dict[str, Any]
SCALARS = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q"}
SCALARS |= {(1, True): "b", (2, True): "h", (4, True): "i", (8, True): "q"}

HEADER = '''# SPDX-License-Identifier: Apache-2.0
"""Generated from bpf/include by bpf/generate_layouts.py: don't edit, run 'make layouts'."""

from enum import IntEnum
from struct import Struct
from typing import NamedTuple
'''


def read_btf(path: str) -> dict[int, BTF]:
    """Return the types of an object by id, as bpftool prints them."""
    dump = subprocess.run(["bpftool", "--json", "btf", "dump", "file", path], check=True, capture_output=True)
    return {t["id"]: t for t in json.loads(dump.stdout)["types"]}


def camel(name: str) -> str:
    """tcp_key -> TcpKey."""
    return "".join(part.capitalize() for part in name.split("_"))


def resolve(types: dict[int, BTF], type_id: int) -> BTF:
    """Follow typedefs and qualifiers to the type itself."""
    while types[type_id]["kind"] in ("TYPEDEF", "CONST", "VOLATILE"):
        type_id = types[type_id]["type_id"]
    return types[type_id]


def scalar(types: dict[int, BTF], type_id: int) -> str:
    """Return the ``struct`` code of an integer type."""
    t = resolve(types, type_id)
    if t["kind"] != "INT":
        raise SystemExit(f"type {t.get('name')}: expected an integer, found {t['kind']}; use fixed-width integers")
    return SCALARS[t["size"], "SIGNED" in t["encoding"] and t["size"] != 1]


def write_enum(t: BTF) -> str:
    """Write one enum, its values without the prefix that they share with it."""
    prefix = t["name"].upper() + "_"
    lines = [f"class {camel(t['name'])}(IntEnum):"]
    lines += [f"    {v['name'].removeprefix(prefix)} = {v['val']}" for v in t["values"]]
    return "\n".join(lines)


def write_struct(types: dict[int, BTF], t: BTF) -> str:
    """Write one struct; refuse bit-fields and holes."""
    fields, codes, arrays, end = [], "<", [], 0
    for member in t["members"]:
        if member["bits_offset"] != end * 8:
            raise SystemExit(f"struct {t['name']}: hole before {member['name']}; make the padding explicit")
        kind = resolve(types, member["type_id"])
        if kind["kind"] == "ARRAY":
            element, n = resolve(types, kind["type_id"]), kind["nr_elems"]
            size = n * element["size"]
            fields.append(f"    {member['name']}: bytes")
            if element["kind"] != "STRUCT":
                code = scalar(types, kind["type_id"])
                arrays.append(f'{t["name"].upper()}_{member["name"].upper()} = Struct("<{n}{code}")')
            codes += f"{size}s"
        elif kind["kind"] == "STRUCT":
            size = kind["size"]
            fields.append(f"    {member['name']}: bytes")
            codes += f"{size}s"
        else:
            size = kind["size"]
            fields.append(f"    {member['name']}: int")
            codes += scalar(types, member["type_id"])
        end += size
    if end != t["size"]:
        raise SystemExit(f"struct {t['name']}: {t['size'] - end} bytes of padding at its end; make them explicit")
    lines = [f"class {camel(t['name'])}(NamedTuple):", *fields, "", ""]
    lines += [f'{t["name"].upper()} = Struct("{codes}")', *arrays]
    return "\n".join(lines)


def generate(path: str) -> str:
    """Return the text of layouts.py for an object."""
    types = read_btf(path)
    parts = [HEADER.rstrip()]
    for t in sorted(types.values(), key=lambda t: (t["kind"] != "ENUM", t.get("name") or "")):
        if t["kind"] == "ENUM" and t["name"] != "(anon)":
            parts.append(write_enum(t))
        elif t["kind"] == "STRUCT":
            parts.append(write_struct(types, t))
    return "\n\n\n".join(parts) + "\n"


if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    sys.stdout.write(generate(sys.argv[1]))
