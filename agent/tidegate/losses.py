# SPDX-License-Identifier: Apache-2.0
"""What each kind of loss means, by its name in the agent's health, and what mends it."""

#: What each kind of loss means and what mends it.
LOSSES = {
    "cgroup_events": (
        "cgroups that appeared or went found no place in the ring; services that live shortly may go by number",
        "lower signals.interval",
    ),
    "oom_events": (
        "kills for want of memory found no place in the ring; whose they were is not known",
        "lower signals.interval",
    ),
    "tcp_rows_full": (
        "counts found no place in the table of an interval and are in the service 'other'",
        "raise signals.tcp.max_rows, or lower signals.interval",
    ),
    "tcp_untracked": (
        "connections found no place among those that are followed and are in no row",
        "raise signals.tcp.max_sockets",
    ),
    "tcp_late": (
        "changes of state that this host's kernel showed to no program were made up for later; counts are right",
        "nothing to set: the host leaves tracing programs out (docs/architecture.md)",
    ),
    "tcp_end_unseen": (
        "ends of connections passed wholly unseen; what came between the last read and such an end is missing",
        "nothing to set: the host leaves tracing programs out (docs/architecture.md)",
    ),
    "tcp_retransmits_unseen": (
        "retransmits that this host's kernel showed to no program were counted later, so their kind is a guess",
        "nothing to set: the host leaves tracing programs out (docs/architecture.md)",
    ),
    "tcp_ports_full": (
        "sockets whose local port found no place in the table of ports, at each read anew",
        "raise signals.ports.max_rows",
    ),
    "ports_full": (
        "upstreams, listeners or bound ports of a namespace found no place when it was visited",
        "raise signals.ports.max_rows",
    ),
    "ports_rows_full": (
        "rows of ports were too many and are left out, at each read anew",
        "raise services.max_rows",
    ),
    "resources_full": (
        "services found no place among those whose CPU and memory are read",
        "raise services.max_rows",
    ),
    "oom_unattributed": (
        "kills for want of memory that the kernel counted were shown to no program; whose they were is not known",
        "look for 'Killed process' in the kernel's log",
    ),
    "disk_rows_full": (
        "requests found no place in the table of an interval and are in the service 'other'",
        "raise signals.disk.max_rows, or lower signals.interval",
    ),
    "disk_unplaced": (
        "requests found no place at all and are in no row",
        "raise signals.disk.max_rows, or lower signals.interval",
    ),
    "disk_untracked": (
        "requests found no place among those that are followed; their time is from their making",
        "raise signals.disk.max_requests",
    ),
    "disk_end_unseen": (
        "ends of requests that this host's kernel showed to no program were counted later; their time is a guess",
        "nothing to set: the host leaves tracing programs out (docs/architecture.md)",
    ),
    "disk_untimed": (
        "requests were counted without a time",
        "nothing to set; where io accounting is off, switch it on: echo 1 >/sys/block/DEVICE/queue/iostats",
    ),
    "disk_bios": (
        "bios of stacked devices found no place among those that are followed and are in no row",
        "raise signals.disk.max_requests",
    ),
    "disk_rows_folded": (
        "idle rows of disks were folded into 'other' to make room",
        "raise services.max_rows",
    ),
    "rows_folded": (
        "idle rows were folded into 'other' to make room",
        "raise services.max_rows or services.max_endpoints",
    ),
    "feed_lines": (
        "lines of the proxy's log were cut off, not understood, or dropped by the kernel as they came too fast",
        "compare its log_format and error_log with docs/rate-limit-feed.md",
    ),
    "feed_queue_full": (
        "times the queue of rate_limit.feed.listen may have been full, and the proxy lost lines",
        "sysctl -w net.unix.max_dgram_qlen=512, and start the agent again",
    ),
    "feed_sources_forgotten": (
        "sources were forgotten before they reached a threshold of rate_limit.feed, as there were too many",
        "lower 'within' of its thresholds",
    ),
    "feed_bans_refused": (
        "bans by the proxy's log were not made",
        "raise rate_limit.feed.ban.at_most and rate_limit.max_bans, or see the agent's log",
    ),
    "audit_records": (
        "records of the audit trail could not be written",
        "make room, or set audit.file to a path that the agent may write",
    ),
    "upstream_lines": (
        "lines of breaker.feed were cut off, not understood, or dropped by the kernel as they came too fast",
        "compare nginx's log_format and access_log with docs/pools.md",
    ),
    "upstream_queue_full": (
        "times the queue of breaker.feed.listen may have been full, and nginx lost lines",
        "sysctl -w net.unix.max_dgram_qlen=512, and start the agent again",
    ),
    "upstream_statistics": (
        "times a proxy's statistics could not be had",
        "see the agent's log, and 'tidegate pools check'",
    ),
    "pool_events": (
        "events that speak against endpoints of pools found no place in their ring and are not charged",
        "nothing to set; the endpoints that failed so often are known by then",
    ),
    "pool_rows": (
        "responses of endpoints found no place in their table and are in no row",
        "raise services.max_rows",
    ),
    "pool_sockets": (
        "connections to endpoints could not be followed for want of memory",
        "see 'dmesg' for failed allocations",
    ),
    "pool_unread": (
        "responses whose first line was split between packets are in no row",
        "nothing to set",
    ),
    "control_clients_slow": (
        "clients of the control socket were dropped because they did not read",
        "have them read faster, or raise control.queue",
    ),
    "control_clients_refused": (
        "clients of the control socket were refused because there were too many",
        "raise control.max_clients",
    ),
    "control_peers_refused": (
        "peers at the control socket were refused because they are neither root nor the agent's user",
        "run their commands as root",
    ),
}
