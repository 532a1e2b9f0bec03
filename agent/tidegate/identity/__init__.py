# SPDX-License-Identifier: Apache-2.0
"""From a cgroup id to the service and the container that people know it by."""
