"""Full CPython for strangers' code: one bubblewrap sandbox per grade in progress, kept warm between grades.

    sandboxes = Sandboxes(Limits(), libraries=["numpy"])     # raises Unavailable: what is missing, what to install
    reply = sandboxes.run({"source": …, "sample": …, "item": …})     # -> {"score": …} or {"fault": …, "message": …}
    sandboxes.close()

What runs inside is `_child.py`; this module starts it, hands it one connection a grade and ends it. Nothing is
weakened where the machine lacks something: bubblewrap ends with an error, and that becomes the refusal.
"""

import json
import math
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from tunekeeper.errors import InvalidState, Unavailable
from tunekeeper.graders._child import MAX_MESSAGE, MAX_PRINTED

LIBRARIES = {
    "ast_grep_py": "ast-grep-py",
    "deepdiff": "deepdiff",
    "jsonschema": "jsonschema",
    "nltk": "nltk",
    "numpy": "numpy",
    "pandas": "pandas",
    "pydantic": "pydantic",
    "rapidfuzz": "rapidfuzz",
    "rdkit": "rdkit",
    "rouge_score": "rouge-score",
    "scipy": "scipy",
    "skbio": "scikit-bio",
    "sklearn": "scikit-learn",
    "sqlparse": "sqlparse",
    "sympy": "sympy",
    "yaml": "pyyaml",
}
"""What a grader may import beside the standard library, where this server has it: import name, distribution."""

START_S, GRACE_S = 60.0, 2.0
"""Seconds for a sandbox to start, and for it to end a grade by itself before it is ended from outside."""
MAX_REPLY = 128 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one grade may use."""

    time_s: float = 120.0
    memory_bytes: int = 2 << 30
    workers: int = min(8, os.cpu_count() or 1)
    """Grades at once; each has this time and this memory."""


class Sandboxes:
    """A pool of sandboxes. A grade has one for itself; a dead one is replaced."""

    def __init__(self, limits: Limits, *, libraries: Sequence[str] = ()) -> None:
        self._limits = limits
        self._command = _command(limits, libraries)
        self._idle: list[_Sandbox] = []
        self._free = threading.BoundedSemaphore(limits.workers)
        self._lock = threading.Lock()
        self._is_closed = False
        # A sandbox dies with the thread that started it, so that thread must live as long as the pool.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
        try:
            self._idle.append(self._start())
        except BaseException:
            self._starter.shutdown()
            raise

    def run(self, request: dict[str, Any], time_s: float | None = None) -> dict[str, Any]:
        """Run a request in a sandbox that nothing else uses; raises Unavailable where none can be started."""
        message = json.dumps(request).encode()
        with self._free:
            sandbox = self._take()
            try:
                return sandbox.run(message, time_s or self._limits.time_s)
            finally:
                self._give_back(sandbox)

    def close(self) -> None:
        """End every sandbox; one that is grading ends with its grade."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for sandbox in idle:
            sandbox.end()
        self._starter.shutdown()

    def _take(self) -> "_Sandbox":
        while True:
            with self._lock:
                if self._is_closed:
                    raise InvalidState("This grader is closed.")
                sandbox = self._idle.pop() if self._idle else None
            if sandbox is None:
                return self._start()
            if sandbox.is_alive:
                return sandbox
            sandbox.end()

    def _start(self) -> "_Sandbox":
        return self._starter.submit(_Sandbox, self._command).result()

    def _give_back(self, sandbox: "_Sandbox") -> None:
        with self._lock:
            if not self._is_closed and sandbox.is_alive:
                self._idle.append(sandbox)
                return
        sandbox.end()


class _Sandbox:
    """One bubblewrap process with its zygote."""

    def __init__(self, command: Sequence[str]) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        self._is_sound = True
        self._control.settimeout(START_S)
        try:
            is_ready = self._control.recv(5) == b"ready"
        except OSError:
            is_ready = False
        if is_ready:
            return
        self._process.kill()
        said = self._process.communicate()[1].decode(errors="replace").strip()
        self.end()
        raise Unavailable(
            "bubblewrap (bwrap) cannot make a sandbox for a Python grader here: "
            f"{said[-500:] or 'it did not start in time'}. It needs unprivileged user namespaces: in a container allow "
            "them (Docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined), on Ubuntu 24.04 set "
            "kernel.apparmor_restrict_unprivileged_userns=0. Nothing weaker is used instead."
        )

    @property
    def is_alive(self) -> bool:
        return self._is_sound and self._process.poll() is None

    def run(self, message: bytes, time_s: float) -> dict[str, Any]:
        """One grade; afterwards the sandbox is as before, or not alive."""
        started = time.monotonic()
        deadline = started + time_s
        ours, theirs = socket.socketpair()
        try:
            with ours:
                with theirs:
                    socket.send_fds(self._control, [b"."], [theirs.fileno()])
                reply = _exchange(ours, message, deadline)
            self._control.settimeout(max(0.0, deadline - time.monotonic()) + GRACE_S)
            ended = self._control.recv(4)
        except TimeoutError:
            self.end()
            return _fault("timeout", f"it ran longer than {time_s:g} seconds")
        except OSError:
            ended = b""
        if len(ended) < 4:
            self.end()
            return _fault("crash", "the sandbox ended before the grade was there")
        (status,) = struct.unpack("!i", ended)
        return _verdict(reply, os.waitstatus_to_exitcode(status), time.monotonic() - started, time_s)

    def end(self) -> None:
        """Kill it and everything in it."""
        self._is_sound = False
        self._process.kill()
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._control.close()


def _exchange(connection: socket.socket, message: bytes, deadline: float) -> bytes:
    """Send the request, read the reply to its end or its limit; TimeoutError at the deadline."""

    def left() -> float:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        return seconds

    reply = b""
    try:
        connection.settimeout(left())
        connection.sendall(struct.pack("!Q", len(message)) + message)
        while len(reply) <= MAX_REPLY:
            connection.settimeout(left())
            more = connection.recv(MAX_REPLY)
            if not more:
                break
            reply += more
    except (BrokenPipeError, ConnectionResetError):
        pass  # it ended early; its exit status says how
    return reply


def _verdict(reply: bytes, exit_code: int, took_s: float, time_s: float) -> dict[str, Any]:
    """What a fork's reply and end mean. The reply is a stranger's: only the one right shape is believed."""
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL) and took_s >= math.ceil(time_s) - GRACE_S:
        return _fault("timeout", f"it computed longer than {time_s:g} seconds")
    if exit_code == -signal.SIGKILL:
        return _fault("memory", "it was killed, as the machine does when memory runs out")
    if exit_code < 0:
        return _fault("crash", f"it crashed the interpreter: {signal.strsignal(-exit_code)}")
    try:
        answer = json.loads(reply) if len(reply) <= MAX_REPLY else None
    except (ValueError, RecursionError):
        answer = None
    if exit_code != 0 or not isinstance(answer, dict):
        return _fault("crash", f"it ended its interpreter (exit code {exit_code}) before grade returned")
    score, printed = answer.get("score"), str(answer.get("printed", ""))[:MAX_PRINTED]
    if isinstance(score, float) and math.isfinite(score):
        return {"score": score, "printed": printed}
    kind = answer.get("fault")
    said = str(answer.get("message", ""))[: 2 * MAX_MESSAGE]  # what was raised, and where
    return _fault(kind if kind in ("invalid", "memory") else "error", said or "it gave no score", printed)


def _fault(kind: str, message: str, printed: str = "") -> dict[str, Any]:
    return {"fault": kind, "message": message, "printed": printed}


def _command(limits: Limits, libraries: Sequence[str]) -> list[str]:
    """The command line that starts a sandbox."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise Unavailable(
            "A Python grader that needs full CPython runs in bubblewrap, which is not installed: "
            "apt-get install bubblewrap (or your system's package of that name; Linux only)."
        )
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    mounts: list[str] = []
    for path in dict.fromkeys(("/lib", "/lib64", "/usr/lib", "/usr/lib64", f"{sys.base_prefix}/lib")):
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            mounts += ["--ro-bind", path, path]
    mounts += ["--ro-bind", interpreter, interpreter, "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    stdlib = sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})
    for packages in (f"{stdlib}/site-packages", f"{stdlib}/dist-packages", "/usr/lib/python3/dist-packages"):
        if os.path.isdir(packages):  # other people's; what a grader may import is under /site
            mounts += ["--tmpfs", packages, "--remount-ro", packages]
    for library in _library_paths():
        mounts += ["--ro-bind", str(library), f"/site/{library.name}"]
    mounts += ["--ro-bind", str(Path(__file__).with_name("_child.py")), "/child.py"]
    environment = {
        "PYTHONHASHSEED": "0",  # the order of a set must not depend on the process
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    settings = {
        "limits": {"memory_bytes": limits.memory_bytes, "cpu_s": math.ceil(limits.time_s)},
        "libraries": [name for name in libraries if name in LIBRARIES],
    }
    return [
        # Where memory runs out, the kernel's choice is to be a grader, not the server.
        *("/bin/sh", "-c", 'echo 1000 >/proc/self/oom_score_adj 2>/dev/null; exec "$0" "$@"', bwrap),
        *("--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534", "--hostname", "grader"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv", "--cap-drop", "ALL"),
        *(part for name, value in environment.items() for part in ("--setenv", name, value)),
        *mounts,
        *("--dev-bind", "/dev/null", "/dev/null", "--chdir", "/", "--remount-ro", "/", "--"),
        *(interpreter, "-P", "-s", "-S", "-B", "-X", "utf8", "/child.py", json.dumps(settings)),
    ]


@cache
def _library_paths() -> list[Path]:
    """What site-packages holds of the libraries and of what they require: packages, modules, shared objects."""
    paths: dict[Path, None] = {}
    waiting, seen = list(LIBRARIES.values()), set[str]()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for file in distribution.files or ():
            if file.parts[0] not in ("..", "/", "__pycache__"):
                paths[Path(str(distribution.locate_file(file.parts[0])))] = None
        for requirement in distribution.requires or ():
            needed = re.match(r"[\w.-]+", requirement)
            if needed and "extra ==" not in requirement:
                waiting.append(needed[0])
    return [path for path in paths if path.exists()]
