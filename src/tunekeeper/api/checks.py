"""Checks of uploaded data files, one after another in a thread of their own: uploaded -> processed | error.

A file that was not checked when the server stopped is checked after its next start.
"""

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from tunekeeper.datasets.formats import detect_method
from tunekeeper.datasets.validate import check
from tunekeeper.errors import NotFound, TunekeeperError
from tunekeeper.storage.blobs import DirectoryBlobs
from tunekeeper.storage.store import Store
from tunekeeper.types import File

_log = logging.getLogger(__name__)

CHECKED_PURPOSES = frozenset({"fine-tune"})
_FAULTS_SHOWN = 10


class FileChecks:
    """The queue of files to check."""

    def __init__(self, store: Store, blobs: DirectoryBlobs) -> None:
        self._store = store
        self._blobs = blobs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="file-check")
        self._stopping = threading.Event()
        self._reading: BinaryIO | None = None

    def submit(self, file: File) -> None:
        """Check the file soon; its status says the outcome."""
        if not self._stopping.is_set():
            self._thread.submit(self._check, file)

    def resume(self) -> None:
        """Check what an earlier server left unchecked."""
        for file in self._store.unchecked_files():
            self.submit(file)

    def wait(self) -> None:
        """Block until what was submitted so far is checked."""
        self._thread.submit(lambda: None).result()

    def stop(self) -> None:
        """End the checks, the running one too; `resume` of the next server takes them up."""
        self._stopping.set()
        reading = self._reading
        if reading is not None:
            reading.close()  # the check fails at its next read, instead of going on through 8 GB
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _check(self, file: File) -> None:
        try:
            with self._blobs.open(file.sha256) as stream:
                self._reading = stream
                # A training file needs ten examples, a validation file one; which it is, the job says.
                report = check(stream, method=detect_method(stream), min_examples=1)
            faults = [
                {"line": fault.line, "code": fault.code, "message": fault.message}
                for fault in report.faults
                if fault.level == "error"
            ]
            details = json.dumps(faults[:_FAULTS_SHOWN], ensure_ascii=False) if not report.ok else None
            self._store.update_file(file.id, status="processed" if report.ok else "error", status_details=details)
        except NotFound:
            _log.info("%s was deleted before it was checked", file.id)
        except Exception as error:
            if self._stopping.is_set():
                return
            _log.exception("the check of %s failed", file.id)
            reason = error.message if isinstance(error, TunekeeperError) else "The check failed; see the log."
            fault = {"line": 0, "code": "check_failed", "message": reason}
            self._store.update_file(file.id, status="error", status_details=json.dumps([fault]))
        finally:
            self._reading = None
