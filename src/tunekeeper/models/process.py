"""What a process that computes with torch needs of its surroundings: pages that stay, threads that wait briefly.

OpenMP gives every thread that computes helpers of its own, and keeps them as long as that thread lives. Where they
are more than the cores, all of them sleep at every wait, which costs a step of few rows a quarter of its time. So one
thread should compute, and others in passing (`in_passing`).

Pages and waiting are set for the process that calls this, before it imports torch, and can be overruled from outside by
glibc's, torch's and OpenMP's own variables.
"""

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SPIN_COUNT = "30000"
"""How often a waiting thread of torch looks before it sleeps: under a millisecond. Threads that sleep at once lose
that much at each of a step's products; threads that never sleep take the cores from another process's step."""

PRIMITIVES = "512"
"""Products of different shapes that oneDNN keeps code for, about 0.6 MB each in bf16; of itself it keeps 1,024."""

_MOST = 2**31 - 1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""From glibc's malloc.h."""


def prepare_process() -> None:
    """Let freed memory be used again rather than be returned and fetched anew: a quarter of a step otherwise.

    What is fetched comes in large pages where the system has them. Each thread keeps a heap of its own: with one for
    all, the threads of a product in bf16 wait for each other, half a step again. With another C library than glibc, or
    with MALLOC_* variables set, its allocator is left as it is.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", PRIMITIVES)
    if any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _MOST)
        mallopt(_TRIM_THRESHOLD, _MOST)


def in_passing(work: Callable[[], T]) -> T:
    """Run it in a thread that ends with it, so that no helpers of its stay."""
    with ThreadPoolExecutor(max_workers=1) as passing:
        return passing.submit(work).result()
