"""Git repositories made by tests: real ones, with commits on the days that a test names."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path


class Repo:
    """A repository in a directory; `commit` takes the whole state of the files that change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str, day: str = "2026-01-01") -> str:
        """What git prints; commits are dated at noon of the day."""
        when = datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=UTC).isoformat()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment |= {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when, "GIT_CONFIG_GLOBAL": os.devnull}
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": "Mia", f"GIT_{role}_EMAIL": "mia@example.org"}
        command = ["git", "-C", str(self.path), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        return done.stdout.decode().strip()

    def write(self, files: dict[str, str | bytes | None]) -> None:
        """Write files; None removes one."""
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, files: dict[str, str | bytes | None] | None = None, *, day: str = "2026-01-01") -> str:
        """Commit the files and all else that changed; return the commit's id."""
        self.write(files or {})
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change", day=day)
        return self.git("rev-parse", "HEAD")

    def move(self, old: str, new: str) -> None:
        """Move a file or folder."""
        (self.path / new).parent.mkdir(parents=True, exist_ok=True)
        self.git("mv", old, new)
