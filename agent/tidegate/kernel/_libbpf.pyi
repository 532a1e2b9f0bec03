# SPDX-License-Identifier: Apache-2.0
"""Made by build_libbpf.py; its functions are libbpf's."""

from typing import Any

lib: Any
ffi: Any
