"""Keeping the C library's allocator out of the figures."""

from __future__ import annotations

import ctypes

# Numbers of glibc's malloc.h; the second is the largest that mallopt(3) accepts on 64 bits.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = 2**31 - 1, 32 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next inference; False where there is no glibc to tell.

    By default it hands memory back to the kernel after an inference or not, depending on the heap's layout, which is random in every
    process. Measured with eager PyTorch and MobileNetV2 on two cores, the same program in fresh processes: 0 page faults an inference
    and 7.3 to 8 ms, or 3300 page faults and 11 to 12.5 ms. A baseline is to be measured at its best, so all runtimes are told the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _NEVER) and mallopt(_M_MMAP_THRESHOLD, _LARGEST))
