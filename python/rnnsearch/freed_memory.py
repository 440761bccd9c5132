"""Freed memory that stays with the process."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Where this process runs on glibc's malloc, let it keep what is freed from here on; whether it does.

    Otherwise a block of more than 32 MB goes back to the system as soon as it is freed, and the system clears another
    one, page by page, when the next update of a model asks for as much. The process then stays as large as it was at
    its largest.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # others have a mallopt of their own
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # Nothing from the system but at the heap's end, 64 MB at a time, and nothing back.
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26)))
