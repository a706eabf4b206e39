"""What was reported last of a watched branch: a small JSON file in the home directory, replaced as a whole.

    with open_state(home, repository.address, branch, out) as file:
        state = file.load()
        ...                                  # publish
        file.save(replace(state, head=head))

It is saved only after a report is published, so a run that dies leaves it where it was, and the next run writes the
same report again instead of skipping it. One process at a time holds it.
"""

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunekeeper.errors import InvalidState, Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """How far the reports of one branch have come."""

    head: str = ""
    """The last commit that was reported; empty before the first report."""
    day: str = ""
    """The ISO day that it was reported under."""
    day_base: str = ""
    """Where that day's report begins: a day is reported as a whole, however often it is looked at."""
    unread_since: str = ""
    """The first day on which the repository could not be reached; empty while it can."""
    last_match: Mapping[str, str] = field(default_factory=dict)
    """By category: the last day on which something in it changed."""
    quiet_reports: Mapping[str, int] = field(default_factory=dict)
    """By category: days since then on which something else changed."""


class StateFile:
    """Where a state is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> State:
        """The state, or that before the first report; raises InvalidState where the file is damaged."""
        try:
            data = json.loads(self.path.read_bytes())
            return State(
                head=_text(data["head"]),
                day=_text(data["day"]),
                day_base=_text(data["day_base"]),
                unread_since=_text(data["unread_since"]),
                last_match={str(name): _text(day) for name, day in data["last_match"].items()},
                quiet_reports={str(name): int(n) for name, n in data["quiet_reports"].items()},
            )
        except FileNotFoundError:
            return State()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidState(
                f"{self.path} is damaged, so what was reported last is not known. Delete it, and give --since the "
                "day of the last report.",
            ) from error

    def save(self, state: State) -> None:
        """Replace the file; raises Unavailable."""
        write_atomically(self.path, json.dumps(asdict(state), indent=2) + "\n")


@contextmanager
def open_state(home: Path, address: str, branch: str, out: Path) -> Iterator[StateFile]:
    """The state of one branch whose reports go to one directory; raises InvalidState while another run holds it."""
    key = "\n".join((address, branch, str(out.resolve())))
    slug = re.sub(r"[^\w.-]+", "-", f"{address.rpartition('://')[2]}-{branch}").strip("-")[-60:]
    path = home / "insight" / "state" / f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidState(
                f"Another run already watches {branch} of {address} for {out}. Let it finish."
            ) from error
        yield StateFile(path)


def write_atomically(path: Path, text: str) -> None:
    """Put a whole file under its name, over an older one; raises Unavailable, and leaves the older one then."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(fd, "w", encoding="utf-8", newline="\n", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise Unavailable(
            f"{path} could not be written: {error.strerror}. What was there before is as it was."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
