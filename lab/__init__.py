# SPDX-License-Identifier: Apache-2.0
"""The gateway of the story in network namespaces: hosts, services, faults, and traffic that counts itself."""
