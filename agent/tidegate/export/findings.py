# SPDX-License-Identifier: Apache-2.0
"""What is wrong as a metric family, to alert on."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from tidegate.export.text import PREFIX
from tidegate.model.finding import Finding

#: The most severe come first; a node with more has one fault in many places.
_MOST = 100


def family(findings: Sequence[Finding] | None) -> Metric:
    """Return the present findings; subjects are services, upstreams and devices, never clients."""
    metric = GaugeMetricFamily(
        PREFIX + "finding",
        "1 for each present finding of tidegate advise, 100 at most.",
        labels=["id", "severity", "subject"],
    )
    for finding in (findings or ())[:_MOST]:
        metric.add_metric([finding.id, finding.severity.value, finding.subject], 1)
    return metric
