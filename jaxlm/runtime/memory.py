"""Settings of the C library's allocator that make a training step on CPU up to a third faster.

XLA on CPU allocates the working memory of a step, hundreds of megabytes, when the step begins, and frees it when the
step ends. By default the system maps and zeroes these pages again in every step: 155,000 page faults per step with 4
layers of width 256. We make the allocator keep freed memory, in huge pages and in one heap: if each thread had its own
heap, so large a block would fit into none and be mapped separately after all. The heap becomes fragmented and grows
from time to time, so the training loop returns unused pages now and then (`give_back`).
"""

import ctypes
import os
import sys

# Never map an allocation separately, never shrink the heap below 32 GiB. Huge pages need glibc 2.35 and a system that
# offers them; older versions and other C libraries ignore these settings.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 32 << 30, "arena_max": 1}.items()
)


def restart_with_malloc_settings() -> None:
    """Replaces this process by a new start of the same program with TUNABLES, which glibc reads only at the start.

    Does nothing if GLIBC_TUNABLES is set already, by us or by the user, even to nothing.
    """
    if os.environ.get("GLIBC_TUNABLES") is not None or not sys.platform.startswith("linux"):
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": TUNABLES})
    except OSError:  # continue with the allocator's defaults
        return


def give_back() -> None:
    """Returns freed memory to the system if TUNABLES are set; the next allocations map their pages again."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
