# SPDX-License-Identifier: Apache-2.0
"""What other programs' configs ask for, in the words of this one; pure, from bytes to keys."""
