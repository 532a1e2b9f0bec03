# SPDX-License-Identifier: Apache-2.0
"""The only code that knows BPF: objects, programs, links, maps and rings through libbpf, and what the host has."""
