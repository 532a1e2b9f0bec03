# SPDX-License-Identifier: Apache-2.0
"""Measures everything and writes docs/performance.md."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from bench import agent, breaker, disk, failfast, pools, ratelimit, reading, report, resources, scrape, tcp

PAGE = Path(__file__).parents[1] / "docs/performance.md"


def main() -> None:
    """Run all benchmarks, or those whose module is named."""
    # Those of the agent first: what the others leave in TIME_WAIT, to 10,000 upstreams, is work for it.
    modules = {
        "resources": resources,
        "agent": agent,
        "tcp": tcp,
        "disk": disk,
        "reading": reading,
        "scrape": scrape,
        "breaker": breaker,
        "failfast": failfast,
        "pools": pools,
        "ratelimit": ratelimit,
    }
    chosen = sys.argv[1:] or list(modules)
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        for name in chosen:
            for figure in modules[name].figures(Path(directory)):
                print(
                    f"{figure.name}: {figure.measured} (target {figure.target})\n    {figure.method}", flush=True
                )
                figures.append(figure)
    if not sys.argv[1:]:
        PAGE.write_text(report.page(figures, os.cpu_count() or 1), encoding="utf-8")


if __name__ == "__main__":
    main()
