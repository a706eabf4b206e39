"""What runs inside the bubblewrap sandbox: a warm interpreter that forks once for each grade.

Standard library only, and nothing of ours: the sandbox sees this one file. `sandbox.py` starts it as process 1 of its
own PID namespace, with file descriptor 0 as the control socket:

    parent                      this process (zygote)             its fork
    one connected socket  --->  forks, and waits             ->   limits, system-call filter
    the request  ----------------------------------------------->  reads it, runs the grader's code
    the reply  <-------------------------------------------------  writes it, ends
    the fork's exit status <--  kills whatever is left

The zygote never sees a grader's code, an item or a reply, so no fork inherits any from it. A fork has its own
connection and no other descriptor, may start no process or thread, opens no socket, sends no signal, and finds no
place to write to. What it writes on its connection is the answer to its own item and nothing else.
"""

import builtins
import contextlib
import ctypes
import gc
import inspect
import io
import json
import linecache
import math
import numbers
import os
import random
import resource
import signal
import socket
import struct
import sys
import traceback
import types
from typing import Any, NoReturn

FILENAME = "grader.py"
MAX_PRINTED, MAX_MESSAGE = 4_000, 1_000
"""Characters that are kept of what a grader prints, and of an error."""

_DENIED = {
    # processes, threads and signals
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # other processes' memory, limits and time
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the network
    "socket": (41, 198),
    # memory and state that outlive a process, or that RLIMIT_AS does not count
    "shmget": (29, 194),
    "shmctl": (31, 195),
    "shmat": (30, 196),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "memfd_create": (319, 279),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
    # namespaces, mounts, and the kernel's large doors
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "syslog": (103, 116),
}
"""System calls that a fork may not make, by their numbers on x86_64 and aarch64."""

_MACHINES = {"x86_64": (0xC000003E, 0, 302), "aarch64": (0xC00000B7, 1, 261)}
"""By machine: its audit number, its column above, its number of prlimit64."""

_FIRST_NEW = 424
"""From here on every machine has the same numbers; all of them (pidfd, io_uring, clone3, …) answer "not there"."""


def number(value: object) -> float:
    """A score as a float; raises TypeError or ValueError, saying what was returned, for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        what = "nothing" if value is None else f"a {type(value).__name__}"
        raise TypeError(f"grade returned {what}; it must return a number, such as float(...)")
    try:
        score = float(value)
    except OverflowError:
        raise ValueError("grade returned a number that no float can hold") from None
    if not math.isfinite(score):
        raise ValueError(f"grade returned {score}; a score must be finite")
    return score


class Printed(io.TextIOBase):
    """The beginning of what a grader printed; the rest is dropped."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        if len(self.text) < MAX_PRINTED:
            self.text += text[: MAX_PRINTED - len(self.text)]
        return len(text)


def zygote(limits: dict[str, int], libraries: list[str]) -> None:
    """Fork for every connection that comes in, until the control socket closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 1 is killed by no signal that it has no handler for
    libc = ctypes.CDLL(None, use_errno=True)
    if os.getpid() != 1 or os.path.exists("/proc/self") or os.access("/", os.W_OK):
        sys.exit("the sandbox is not closed: not process 1, or /proc or a writable / is there")
    if libc.prctl(4, 0, 0, 0, 0):  # PR_SET_DUMPABLE: no fork may trace or read this process
        sys.exit("the sandbox's first process cannot be protected")
    program = _filter(os.uname().machine)
    sys.path.append("/site")
    for name in libraries:
        with contextlib.suppress(Exception):  # the grader's own import will say what is wrong
            __import__(name)
    control = socket.socket(fileno=0)
    null = os.open("/dev/null", os.O_RDWR)
    gc.freeze()
    control.sendall(b"ready")
    os.dup2(null, 1)
    os.dup2(null, 2)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data or not descriptors:
            return
        pid = os.fork()
        if pid == 0:
            _grade_once(descriptors[0], null, limits, libc, program)
        os.close(descriptors[0])
        _, status = os.waitpid(pid, 0)
        _end_the_rest()
        control.sendall(struct.pack("!i", status))


def _end_the_rest() -> None:
    """Kill and reap every other process of the sandbox. The filter lets none be started; this does not rely on it."""
    try:
        os.kill(-1, signal.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


def _grade_once(descriptor: int, null: int, limits: dict[str, int], libc: ctypes.CDLL, program: bytes) -> NoReturn:
    """A fork's whole life."""
    try:
        os.dup2(null, 0)  # the control socket was here
        os.dup2(descriptor, 3)
        os.closerange(4, 1024)
        _confine(limits, libc, program)
        with open(3, "rb", closefd=False) as incoming:
            (size,) = struct.unpack("!Q", incoming.read(8))
            request = json.loads(incoming.read(size))
        reply = json.dumps(_answer(request)).encode()
        while reply:
            reply = reply[os.write(3, reply) :]
        os._exit(0)
    finally:
        os._exit(1)


def _confine(limits: dict[str, int], libc: ctypes.CDLL, program: bytes) -> None:
    cpu = limits["cpu_s"]
    for kind, soft, hard in (
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privs, 1, 0, 0, 0) or libc.prctl(set_seccomp, filter_mode, ctypes.c_char_p(fprog), 0, 0):
        os._exit(1)


def _filter(machine: str) -> bytes:
    """The seccomp program: each denied call gives EPERM, each new one ENOSYS, limits are one's own to change."""
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        sys.exit(f"there is no system-call filter for {machine}")
    audit, column, prlimit64 = _MACHINES[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, _FIRST_NEW), (give, 0, 0, enosys)]
    for numbers_of in _DENIED.values():
        call = numbers_of[column]
        if call is not None:
            program += [(equal, 0, 1, call), (give, 0, 0, eperm)]
    program += [(equal, 0, 3, prlimit64), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, eperm), (give, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run the source and its `grade`: {"score"} or {"fault", "message"}, and {"printed"}."""
    printed = Printed()
    sys.stdout = sys.stderr = printed
    try:
        grade = _load(request["source"])
        if request.get("check"):
            return {"score": 0.0}
        score = number(grade(request["sample"], request["item"]))
    except _Invalid as error:
        return {"fault": "invalid", "message": str(error)[:MAX_MESSAGE]}
    except MemoryError as error:
        return {"fault": "memory", "message": _describe(error), "printed": printed.text}
    except BaseException as error:
        return {"fault": "error", "message": _describe(error), "printed": printed.text}
    return {"score": score, "printed": printed.text}


class _Invalid(Exception):
    """The source is no grader."""


def _load(source: str) -> Any:
    try:
        code = compile(source, FILENAME, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise _Invalid(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _Invalid(f"it cannot be compiled: {error}") from None
    module = types.ModuleType("grader")
    module.__dict__.update(__builtins__=builtins, __file__=FILENAME)
    sys.modules["grader"] = module
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    exec(code, module.__dict__)
    grade = module.__dict__.get("grade")
    if not callable(grade):
        raise _Invalid("it defines no function grade(sample, item)")
    try:
        inspect.signature(grade).bind(None, None)
    except TypeError as error:
        raise _Invalid(f"grade must take (sample, item): {error}") from None
    except ValueError:  # a callable that does not tell its signature
        pass
    return grade


def _describe(error: BaseException) -> str:
    """What was raised, and where in the grader's source."""
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    said = f"{type(error).__name__}: {text}"[:MAX_MESSAGE] if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__, limit=-100) if frame.filename == FILENAME]
    return said if not frames else f"{said} ({where(frames[-1].lineno, frames[-1].name, frames[-1].line)})"


def where(line: int | None, function: str | None, text: str | None) -> str:
    """A place in the source, for a person."""
    inside = "" if function in (None, "<module>") else f", in {function}"
    return f"line {line}{inside}" + (f": {text.strip()[:200]}" if text else "")


if __name__ == "__main__":
    _limits = json.loads(sys.argv[1])
    zygote(_limits["limits"], _limits["libraries"])
