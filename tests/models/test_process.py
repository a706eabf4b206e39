"""What `prepare_process` sets, seen from a process of its own: pages that were freed once are not faulted in again."""

import os
import subprocess
import sys
import threading

import pytest

from tunekeeper.models.process import in_passing

FAULTS = """
import resource
from tunekeeper.models.process import prepare_process
prepare_process()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for round in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 * 1024**2)
    ctypes.memset(block, 1, 64 * 1024**2)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def faults_of_the_third_block(**environ: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environ, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    assert faults_of_the_third_block() < 100


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_an_operator_s_own_allocator_settings_stand() -> None:
    assert faults_of_the_third_block(MALLOC_MMAP_THRESHOLD_="1048576") > 10_000


def test_what_is_run_in_passing_leaves_no_thread_and_its_fault_is_the_caller_s() -> None:
    before = threading.active_count()
    assert in_passing(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        in_passing(lambda: 1 // 0)
    assert threading.active_count() == before
