# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]


def test_regenerating_the_layouts_changes_nothing() -> None:
    command = [sys.executable, str(ROOT / "bpf/generate_layouts.py"), str(ROOT / "build/types.bpf.o")]
    generated = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert generated == (ROOT / "agent/tidegate/kernel/layouts.py").read_text(encoding="utf-8")


def test_every_header_for_both_sides_is_anchored() -> None:
    anchors = (ROOT / "bpf/types.bpf.c").read_text(encoding="utf-8")
    headers = {path.name for path in (ROOT / "bpf/include").glob("*.h") if not path.name.endswith(".bpf.h")}
    included = {name for name in headers if f'#include "include/{name}"' in anchors}
    assert headers - included == {"histogram.h"}  # which tcp.h includes
