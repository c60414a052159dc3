"""Keep buffers of a chunk's size inside the process, instead of returning each to the kernel.

glibc gives a block above 128 KiB a mapping of its own and unmaps it when it is freed, so every
received chunk pays for fresh pages, which is the largest single cost of a round. A daemon calls
:func:`keep_large_buffers` once at its start. Elsewhere than on glibc nothing happens.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD = -3
_MMAP_BYTES = 4 << 20  # a message, which is at most that long, stays on the heap
_TRIM_BYTES = 64 << 20  # free memory at the top of the heap that may stay with the process


def keep_large_buffers() -> bool:
    """Set the thresholds of malloc; return whether they were taken."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
