"""The `python` grader: a stranger's code, `grade(sample, item) -> float`, run where it can do no harm.

    grader = python_grader("def grade(sample, item):\\n    return float(sample['output_text'] == item['answer'])")
    grader.grade({"output_text": "4"}, {"answer": "4"}).score     # -> 1.0
    grader.runner, grader.reason                                  # -> "monty", "…"
    grader.close()

Two runners, neither of which is CPython with fewer builtins in the server's process:

    monty     pydantic-monty, an interpreter of a part of Python without file, network, environment or clock
    cpython   full CPython in a bubblewrap sandbox: `sandbox.py`

One rule decides, from the source alone: monty, if it knows every imported module, runs the source's top level, and
finds a function `grade` there; else CPython. monty knows less than CPython does, so a grade that raises in monty (but
not one that runs out of time) is done again in CPython, and that result counts. A grade is thus the same whichever was
tried before it. Each runs in a fresh interpreter state: nothing stays for the next.
"""

import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from tunekeeper.errors import InvalidRequest, InvalidState, TunekeeperError, Unavailable
from tunekeeper.graders._child import FILENAME, MAX_MESSAGE, Printed, number, where
from tunekeeper.graders.sandbox import LIBRARIES, Limits, Sandboxes
from tunekeeper.graders.spec import MAX_SOURCE_BYTES
from tunekeeper.types import Grade, GradeFault, Json

MONTY_MEMORY_BYTES = 256 << 20
"""A grader that needs more than this is done again in CPython."""
CHECK_S, CPYTHON_CHECK_S = 5.0, 20.0
"""Seconds for the top level of a source, when it is checked: what passes the first is tried in CPython."""

_IMPORTS = re.compile(r"^[ \t]*(?:from[ \t]+(\w++)[\w.]*+[ \t]+import\b|import[ \t]+([\w., \t]+))", re.MULTILINE)
_WRONG_CALL = re.compile(r"TypeError: (?:grade|<lambda>)\(\) (?:missing|takes)")
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""What every clock shows in monty."""

Result = dict[str, Any]
"""{"score", "printed"}, or {"fault", "message", "printed"}: error, value, invalid, unknown, memory, timeout, crash."""


class _Runner(Protocol):
    def check(self) -> Result: ...
    def run(self, sample: Json, item: Json) -> Result: ...
    def close(self) -> None: ...


def python_grader(source: str, image_tag: str | None = None, *, limits: Limits | None = None) -> "PythonGrader":
    """Make a grader of source that defines `grade(sample, item)`.

    `image_tag` is accepted and changes nothing: the libraries are this server's. Raises InvalidRequest for source that
    cannot be a grader, Unavailable where nothing here can run it.
    """
    size = len(source.encode(errors="surrogatepass"))
    if size > MAX_SOURCE_BYTES:
        raise InvalidRequest(
            f"The source of a Python grader has {size} bytes; {MAX_SOURCE_BYTES} is the most. "
            "Move data into the items, which every call gets.",
            param="source",
        )
    return PythonGrader(source, limits or Limits())


class PythonGrader:
    """Runs one source in monty or in CPython; see the module."""

    runner: Literal["monty", "cpython"]
    """What runs it first."""
    reason: str
    """Why, for a person."""

    def __init__(self, source: str, limits: Limits) -> None:
        self._make_cpython: Callable[[], _Runner] = lambda: Cpython(source, limits)
        self._lock = threading.Lock()
        self._cpython: _Runner | Unavailable | None = None
        self._monty: _Runner | None = None
        self._is_closed = False
        try:
            self._choose(source, limits)
        except BaseException:
            self.close()
            raise

    def grade(self, sample: Json, item: Json) -> Grade:
        """Score one sample; a fault where the code raises, gives no finite number, or passes its limits."""
        started = time.monotonic()
        if self._is_closed:
            raise InvalidState("This grader is closed.")
        runner: str = self.runner
        if self._monty is not None:
            result = self._monty.run(sample, item)
            if result.get("fault") not in (None, "value", "timeout"):
                try:
                    result, runner = self._full().run(sample, item), "cpython"
                except Unavailable as missing:
                    result["message"] += f" [only the small interpreter was tried: {missing}]"
        else:
            try:
                result = self._full().run(sample, item)
            except Unavailable as missing:
                result = {"fault": "unavailable", "message": str(missing)}
        return _grade(result, runner, time.monotonic() - started)

    def close(self) -> None:
        """End the interpreters."""
        self._is_closed = True
        with self._lock:
            for runner in (self._monty, self._cpython):
                if runner is not None and not isinstance(runner, Unavailable):
                    runner.close()

    def _choose(self, source: str, limits: Limits) -> None:
        missing = ""
        checked: Result = {}
        try:
            self._monty = Monty(source, limits)
            checked = self._monty.check()
        except Unavailable as error:
            missing = str(error)
        if self._monty is not None and "fault" not in checked:
            self.runner, self.reason = "monty", "the small interpreter has everything that the source asks for"
            return
        if checked.get("fault") == "invalid":
            raise _invalid(checked)
        if self._monty is not None:
            self._monty.close()
            self._monty = None
        self.runner = "cpython"
        self.reason = missing or f"the small interpreter cannot run it: {checked['message']}"
        try:
            result = self._full().check()
        except Unavailable as error:
            raise Unavailable(f"Nothing here can run this Python grader. {self.reason}. {error}") from error
        if "fault" in result:
            raise _invalid(result)

    def _full(self) -> _Runner:
        """The CPython runner, started when it is first needed; raises Unavailable each time if it cannot."""
        with self._lock:
            if self._is_closed:
                raise InvalidState("This grader is closed.")
            if self._cpython is None:
                try:
                    self._cpython = self._make_cpython()
                except Unavailable as error:
                    self._cpython = error
            if isinstance(self._cpython, Unavailable):
                raise self._cpython
            return self._cpython


def _invalid(result: Result) -> TunekeeperError:
    text = f"The Python grader's source cannot be used: {result['message']}."
    if "ModuleNotFoundError" in result["message"]:
        text += f" A grader has the standard library and, where the server has them: {', '.join(LIBRARIES)}."
    return InvalidRequest(text, param="source")


def _grade(result: Result, runner: str, took_s: float) -> Grade:
    details: Json = {"runner": runner}
    if result.get("printed"):
        details["printed"] = result["printed"]
    fault = result.get("fault")
    if fault is None:
        return Grade(score=result["score"], execution_time_s=took_s, details=details)
    if fault in ("timeout", "memory", "crash", "unavailable"):
        found = GradeFault(kind="python_grader_server_error", message=result["message"], type=fault)
    else:
        found = GradeFault(kind="python_grader_runtime_error", message=result["message"])
    return Grade(score=0.0, faults=(found,), execution_time_s=took_s, details=details)


class Cpython:
    """Full CPython: a fork of a warm interpreter in a bubblewrap sandbox for each grade."""

    def __init__(self, source: str, limits: Limits) -> None:
        self._source, self._time_s = source, limits.time_s
        self._sandboxes = Sandboxes(limits, libraries=[name for name in _imported(source) if name in LIBRARIES])

    def check(self) -> Result:
        """Run the source's top level; look at `grade`."""
        return self._sandboxes.run({"source": self._source, "check": True}, min(CPYTHON_CHECK_S, self._time_s))

    def run(self, sample: Json, item: Json) -> Result:
        """Grade one sample."""
        return self._sandboxes.run({"source": self._source, "sample": sample, "item": item})

    def close(self) -> None:
        """End the sandboxes."""
        self._sandboxes.close()


class Monty:
    """pydantic-monty: worker processes, and a fresh session in one of them for each grade."""

    def __init__(self, source: str, limits: Limits) -> None:
        try:
            import pydantic_monty
        except ImportError as error:
            raise Unavailable("pydantic-monty is not installed: pip install 'tunekeeper[graders]'") from error
        self._lib, self._source, self._limits = pydantic_monty, source, limits
        try:
            self._pool = pydantic_monty.Monty(max_processes=limits.workers, request_timeout=limits.time_s + CHECK_S)
            self._pool.__enter__()
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"pydantic-monty cannot start its interpreter: {error}") from error

    def check(self) -> Result:
        """Whether it can run the source: fault `invalid` if nothing can, another if CPython may."""
        printed = Printed()
        with self._session(CHECK_S) as session:
            for code in (*(f"import {name}" for name in _imported(self._source)), self._source):
                result = self._feed(session, code, printed)
                if "fault" in result:
                    return result
            if self._feed(session, "type(grade).__name__", printed).get("value") != "function":
                return _fault("unknown", "it defines no plain function grade(sample, item)", printed)
            called = str(self._feed(session, "grade({}, {})", printed).get("message", ""))
        if _WRONG_CALL.match(called):
            return _fault("invalid", f"grade must take (sample, item): {called}", printed)
        return {"printed": printed.text}

    def run(self, sample: Json, item: Json) -> Result:
        """Grade one sample."""
        printed = Printed()
        try:
            with self._session(self._limits.time_s) as session:
                result = self._feed(session, self._source, printed)
                if "fault" not in result:
                    result = self._feed(session, "grade(sample, item)", printed, {"sample": sample, "item": item})
        except (TimeoutError, RuntimeError, OSError) as error:  # no worker
            return _fault("unavailable", f"pydantic-monty has no interpreter: {error}", printed)
        if "fault" in result:
            return result
        try:
            return {"score": number(result["value"]), "printed": printed.text}
        except (TypeError, ValueError) as error:
            return _fault("value", f"{type(error).__name__}: {error}", printed)

    def close(self) -> None:
        """End the workers."""
        self._pool.__exit__(None, None, None)

    def _session(self, time_s: float) -> Any:
        return self._pool.checkout(
            script_name=FILENAME,
            limits={"max_feed_duration_secs": time_s, "max_memory": min(MONTY_MEMORY_BYTES, self._limits.memory_bytes)},
            os_policy={"datetime": _NOW, "timezone": "utc", "sleep": "zero", "random_start": {"seed": 0}},
            assert_message_annotations=False,
        )

    def _feed(self, session: Any, code: str, printed: Printed, inputs: Json | None = None) -> Result:
        """Run code in a session: {"value"} or a fault."""
        try:
            return {"value": session.feed_run(code, inputs=inputs, print_callback=lambda _, text: printed.write(text))}
        except self._lib.MontySyntaxError as error:
            frames = error.traceback()
            place = f"line {frames[-1].line}: " if frames else ""
            return _fault("invalid", f"{place}{error.display('msg')[:MAX_MESSAGE]}", printed)
        except self._lib.MontyCrashedError as error:
            if error.timed_out:
                return _fault("timeout", f"it ran longer than {self._limits.time_s:g} seconds", printed)
            return _fault("crash", f"the small interpreter ended: {error}"[:MAX_MESSAGE], printed)
        except self._lib.MontyRuntimeError as error:
            frames = error.traceback()
            inner = error.exception()
            if isinstance(inner, TimeoutError) and not frames:
                return _fault("timeout", f"it ran longer than {self._limits.time_s:g} seconds", printed)
            said = error.display("type-msg")[:MAX_MESSAGE]
            # The last feed is our call of grade; the frames before it lie in the source.
            inside = [frame for frame in frames if frame.function_name != "<module>" or inputs is None]
            if inside:
                last = inside[-1]
                said += f" ({where(last.line, last.function_name, last.source_line)})"
            return _fault("memory" if isinstance(inner, MemoryError) else "error", said, printed)
        except (self._lib.MontyError, ValueError, RecursionError) as error:  # a value that does not cross over
            return _fault("error", f"{type(error).__name__}: {error}"[:MAX_MESSAGE], printed)


def _fault(kind: str, message: str, printed: Printed) -> Result:
    return {"fault": kind, "message": message, "printed": printed.text}


def _imported(source: str) -> list[str]:
    """Top-level names that the source seems to import, anywhere; a line in a docstring may look so too."""
    names: dict[str, None] = {}
    for from_, imports in _IMPORTS.findall(source):
        for part in [from_] if from_ else imports.split(","):
            names[part.strip().partition(" ")[0].partition(".")[0]] = None
    return [name for name in names if name.isidentifier()]
