# SPDX-License-Identifier: Apache-2.0
"""What the proxies say of their clients and endpoints, as events."""
