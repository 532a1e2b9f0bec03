# SPDX-License-Identifier: Apache-2.0
"""The compiled part of the build; all else is in pyproject.toml."""

from setuptools import setup

setup(cffi_modules=["agent/tidegate/kernel/build_libbpf.py:builder"])
