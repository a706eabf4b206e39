import hashlib
import io
import os
import subprocess
import sys
import textwrap

import pytest

from tunekeeper.errors import DiskFull, NotFound
from tunekeeper.storage.blobs import DirectoryBlobs


@pytest.fixture
def blobs(tmp_path):
    return DirectoryBlobs(tmp_path / "blobs")


def temps(blobs, tmp_path):
    return list((tmp_path / "blobs" / "tmp").iterdir())


def redirect(writer, path, flags):
    """Have the writer's bytes go elsewhere from now on."""
    fd = os.open(path, flags)
    os.dup2(fd, writer.fileno())
    os.close(fd)


def test_bytes_lie_under_their_hash(blobs):
    sha256, size = blobs.put(io.BytesIO(b"hello"))
    assert (sha256, size) == (hashlib.sha256(b"hello").hexdigest(), 5)
    with blobs.open(sha256) as stream:
        assert stream.read() == b"hello"


def test_an_empty_stream_is_a_blob_too(blobs):
    sha256, size = blobs.put(io.BytesIO(b""))
    assert size == 0
    with blobs.open(sha256) as stream:
        assert stream.read() == b""


def test_the_same_bytes_twice_are_one_blob(blobs, tmp_path):
    first = blobs.put(io.BytesIO(b"same"))
    assert blobs.put(io.BytesIO(b"same")) == first
    assert len(list((tmp_path / "blobs").glob("??/*"))) == 1


def test_a_writer_that_is_left_without_commit_leaves_nothing(blobs, tmp_path):
    with blobs.writer() as writer:
        writer.write(b"half")
    assert temps(blobs, tmp_path) == []
    assert list((tmp_path / "blobs").glob("??/*")) == []


def test_a_reader_keeps_its_bytes_when_the_blob_is_deleted(blobs):
    sha256, _ = blobs.put(io.BytesIO(b"going"))
    with blobs.open(sha256) as stream:
        blobs.delete(sha256)
        assert stream.read() == b"going"
    with pytest.raises(NotFound):
        blobs.open(sha256)


def test_deleting_what_is_not_there_is_no_fault(blobs):
    blobs.delete("0" * 64)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "", "A" * 64, "0" * 63])
def test_a_name_that_is_no_hash_never_reaches_the_disk(blobs, name):
    with pytest.raises(AssertionError):
        blobs.path(name)


def test_sweep_removes_what_a_killed_writer_left(blobs, tmp_path):
    (tmp_path / "blobs" / "tmp" / "left").write_bytes(b"x")
    kept, _ = blobs.put(io.BytesIO(b"kept"))
    blobs.sweep()
    assert temps(blobs, tmp_path) == []
    assert blobs.exists(kept)


def test_orphans_are_old_blobs_that_nobody_uses(blobs):
    used, _ = blobs.put(io.BytesIO(b"used"))
    old, _ = blobs.put(io.BytesIO(b"old"))
    blobs.put(io.BytesIO(b"young"))
    for sha256 in (used, old):
        os.utime(blobs.path(sha256), (0, 0))
    assert list(blobs.orphans({used})) == [old]


def test_bytes_that_arrive_again_are_young_again(blobs):
    sha256, _ = blobs.put(io.BytesIO(b"again"))
    os.utime(blobs.path(sha256), (0, 0))
    blobs.put(io.BytesIO(b"again"))
    assert list(blobs.orphans(set())) == []


def test_a_full_disk_is_named_and_leaves_no_temporary_file(blobs, tmp_path):
    with blobs.writer() as writer:
        writer.write(b"fits")
        redirect(writer, "/dev/full", os.O_WRONLY)  # a real device whose every write fails with ENOSPC
        with pytest.raises(DiskFull, match="disk is full"):
            writer.write(b"does not")
    assert temps(blobs, tmp_path) == []


def test_other_faults_of_the_disk_keep_their_own_error(blobs):
    with blobs.writer() as writer:
        redirect(writer, os.devnull, os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file descriptor"):
            writer.write(b"x")


def test_memory_stays_constant_whatever_the_size(tmp_path):
    script = """
        import resource, sys
        from pathlib import Path
        from tunekeeper.storage.blobs import DirectoryBlobs

        class Zeros:
            left = 200 * 1024**2
            def read(self, n):
                n = min(n, self.left)
                self.left -= n
                return bytes(n)

        blobs = DirectoryBlobs(Path(sys.argv[1]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        blobs.put(Zeros())
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "blobs")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(run.stdout) < 16 * 1024  # KiB
