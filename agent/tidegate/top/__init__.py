# SPDX-License-Identifier: Apache-2.0
"""The view as text for people."""
