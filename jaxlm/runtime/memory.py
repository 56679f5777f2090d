"""How the C library keeps memory: in one heap of huge pages that does not shrink, with which a step on CPU takes up to
a third less time.

XLA on CPU allocates a step's working memory when the step begins and frees it at its end, hundreds of megabytes that
the system would hand out anew each time, page by page at first touch: 155,000 faults a step of 4 layers x 256. Where
threads have heaps of their own those megabytes fit none, are mapped by themselves after all, and zeroed in every step;
so there is one heap. Now and then the working memory fits none of its gaps and another is made, so from time to time
the training loop gives back what no one uses.
"""

import ctypes
import os
import sys

# Huge pages since glibc 2.35, where the system gives them; older ones and other C libraries pass over them. What is
# freed stays with the process: no allocation is mapped by itself, and the heap does not shrink below 32 GiB.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 32 << 30, "arena_max": 1}.items()
)


def restart_with_kept_memory() -> None:
    """Starts this program again in its place, so that the C library, which reads its settings once, takes ours.

    Does nothing where that is already so, or where the user has set tunables of glibc, be it to none.
    """
    if os.environ.get("GLIBC_TUNABLES") is not None or not sys.platform.startswith("linux"):
        return
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": TUNABLES})
    except OSError:  # go on as we are
        return


def give_back() -> None:
    """Gives the system what was freed and stayed under our tunables; what is asked for next is mapped anew."""
    if os.environ.get("GLIBC_TUNABLES") == TUNABLES and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
