"""What changed in a git repository, as a ChangeSet: read through git itself, so that nothing is capped.

    repository = open_repository("https://github.com/owner/docs", home)   # or a path
    changes = repository.changes(repository.span("v1..v2"))
    for span in repository.days(after=last_head):                         # one span a day with commits
        ...

A remote repository is cloned without its blobs into the home directory and fetched at each use; git asks for
the blobs of a diff when it needs them. A handful of processes reads any number of files.
"""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from tunekeeper.diffs.patch import added, parse_patch, removed
from tunekeeper.errors import InvalidRequest, NotFound, Unauthenticated, Unavailable, UpstreamFailed
from tunekeeper.insight.catalogue import Sentence
from tunekeeper.insight.changes import ChangeSet, FileChange, Status

MARKDOWN = frozenset({".md", ".markdown", ".mdx"})
"""Suffixes of the files whose whole text is read beside their diff."""
TEXT = MARKDOWN | {".csv", ".html", ".ipynb", ".json", ".rst", ".toml", ".txt", ".xml", ".yaml", ".yml"}
"""Suffixes of text that git may take for binary, because it is UTF-16."""
RENAME_LIMIT = 5000
"""Files compared for renames with changes; moves of unchanged files are found in any number."""

_STATUS: Mapping[str, Status] = {"A": "added", "D": "removed", "R": "renamed", "C": "copied", "T": "changed"}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|[\w.-]+@[\w.-]+:", re.IGNORECASE)
_LICENSES = (
    ("Apache License", "Apache-2.0"),
    ("Attribution-ShareAlike 4.0", "CC BY-SA 4.0"),
    ("Attribution 4.0 International", "CC BY 4.0"),
    ("CC0 1.0", "CC0 1.0"),
    ("MIT License", "MIT"),
    ("Permission is hereby granted, free of charge", "MIT"),
    ("Redistribution and use in source and binary forms", "BSD"),
    ("Mozilla Public License", "MPL-2.0"),
    ("GNU AFFERO GENERAL PUBLIC LICENSE", "AGPL"),
    ("GNU LESSER GENERAL PUBLIC LICENSE", "LGPL"),
    ("GNU GENERAL PUBLIC LICENSE", "GPL"),
)


@dataclass(frozen=True, slots=True)
class Span:
    """Two states of a repository, and the day under which what lies between them is reported."""

    base: str
    head: str
    date: str
    """ISO date, UTC."""
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A git repository on this machine."""

    path: Path
    address: str
    """What to call it: the URL without credentials, or the path."""
    lacks: tuple[str, ...] = ()
    """Why it may be older than it should be."""

    def git(self, *arguments: str, stdin: bytes = b"") -> bytes:
        """The output of git; raises NotFound, Unavailable or UpstreamFailed."""
        return self._run(arguments, stdin).stdout

    def _run(self, arguments: Sequence[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return _git(["-C", str(self.path), *arguments], address=self.address, stdin=stdin)

    def branch(self) -> str:
        """The branch that HEAD is on; "HEAD" where it is on none."""
        try:
            return self.git("symbolic-ref", "--quiet", "--short", "HEAD").decode().strip()
        except UpstreamFailed:
            return "HEAD"

    def commit(self, name: str) -> str:
        """The id of a commit by its name; raises NotFound."""
        try:
            found = self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name or 'HEAD'}^{{commit}}")
        except UpstreamFailed as error:
            raise NotFound(
                f"{self.address} has no commit {name!r}. Name a branch, a tag or an id that `git log` shows there; "
                "a shallow clone may need `git fetch --unshallow`.",
                param="range",
            ) from error
        return found.decode().strip()

    def has(self, commit: str) -> bool:
        """Whether the commit is here."""
        try:
            return bool(self.commit(commit))
        except NotFound:
            return False

    def span(self, text: str) -> Span:
        """BASE..HEAD, BASE...HEAD (from where they parted), or BASE alone (to HEAD); raises NotFound."""
        base_name, dots, head_name = text.partition("...") if "..." in text else text.partition("..")
        base, head = self.commit(base_name), self.commit(head_name)
        if dots == "...":
            try:
                base = self.git("merge-base", base, head).decode().strip()
            except UpstreamFailed as error:
                message = f"{base_name} and {head_name} have no common ancestor; compare them with two dots."
                raise InvalidRequest(message, param="range") from error
        return Span(base, head, self._day(head))

    def between(self, since: date, until: date, *, branch: str) -> Span:
        """From the last commit before the day `since` to the last of the day `until`; raises NotFound."""
        commits = self._days_of(self.commit(branch))
        inside = [commit for commit, day in commits if day <= until]
        before = [commit for commit, day in commits if day < since]
        if len(inside) == len(before):
            raise NotFound(f"{branch} of {self.address} has no commit from {since} to {until}.", param="since")
        return Span(before[-1] if before else self._empty_tree(), inside[-1], self._day(inside[-1]))

    def days(
        self,
        *,
        branch: str,
        after: str | None = None,
        after_day: str | None = None,
        since: date | None = None,
    ) -> list[Span]:
        """One span for each day with commits, oldest first, each beginning where the one before it ends.

        They begin after the commit `after` (which was reported under `after_day`), or at the day `since`, or, with
        neither, with the newest day. A commit whose clock was wrong counts to the day of the commit before it.
        """
        head = self.commit(branch)
        lacks: tuple[str, ...] = ()
        floor = None if after_day is None else date.fromisoformat(after_day)
        if after is not None and not self._is_ancestor(after, head):
            lacks = (Sentence("lacks_history", branch=branch, commit=after[:7]),)
            if self.has(after):
                day = max(date.fromisoformat(self._day(head)), floor or date.min)
                return [Span(after, head, day.isoformat(), lacks)]
            after, since = None, floor
        if after is not None:
            base, commits = after, self._days_of(f"{after}..{head}", floor)
        else:
            everything = self._days_of(head)
            since = since or everything[-1][1]
            before = [commit for commit, day in everything if day < since]
            base = before[-1] if before else self._empty_tree()
            commits = everything[len(before) :]
        last_of_day = {day: commit for commit, day in commits}
        spans = []
        for day, commit in last_of_day.items():
            spans.append(Span(base, commit, day.isoformat(), lacks))
            base, lacks = commit, ()
        return spans

    def changes(self, span: Span) -> ChangeSet:
        """Everything that changed within the span."""
        files, lacks = self._files(span.base, span.head)
        return ChangeSet(
            date=span.date,
            url=self._url(span),
            files=files,
            base=span.base,
            head=span.head,
            source=self._source(),
            license=self._license(span.head),
            lacks=(*self.lacks, *span.lacks, *lacks),
        )

    def tree(self, commit: str) -> dict[str, str]:
        """The ids of all files of a commit, by path."""
        entries = self.git("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0")
        split = (entry.partition(b"\t") for entry in entries if entry)
        return {_text(path): meta.split()[2].decode() for meta, _, path in split}

    def last_touched(self, pathspecs: Sequence[str], commit: str) -> tuple[str, str] | None:
        """The newest commit that touched any of the pathspecs, and its day; None if none ever did."""
        found = self.git("log", "-1", "--first-parent", "--format=%H %ct", commit, "--", *pathspecs).split()
        return (found[0].decode(), _day_of(int(found[1])).isoformat()) if found else None

    def renames(self, commit: str) -> dict[str, str]:
        """Where the files went that this commit moved."""
        records = self.git("diff-tree", "-r", "-z", "-M50%", f"-l{RENAME_LIMIT}", "--raw", f"{commit}^", commit)
        return {_text(old): _text(new) for _, _, letter, old, new in _raw(records) if letter == "R"}

    def _day(self, commit: str) -> str:
        return _day_of(int(self.git("show", "--no-patch", "--format=%ct", commit))).isoformat()

    def _is_ancestor(self, commit: str, head: str) -> bool:
        try:
            self.git("merge-base", "--is-ancestor", commit, head)
        except UpstreamFailed:
            return False
        return True

    def _days_of(self, revisions: str, floor: date | None = None) -> list[tuple[str, date]]:
        """The commits of the main line with their days, oldest first; days never go back."""
        words = self.git("log", "--first-parent", "--reverse", "--format=%H %ct", revisions).split()
        latest = floor or date.min
        found = []
        for commit, seconds in zip(words[::2], words[1::2], strict=True):
            latest = max(latest, _day_of(int(seconds)))
            found.append((commit.decode(), latest))
        return found

    def _empty_tree(self) -> str:
        return self.git("hash-object", "-t", "tree", "--stdin").decode().strip()

    def _files(self, base: str, head: str) -> tuple[tuple[FileChange, ...], list[str]]:
        command = ["diff-tree", "-r", "-z", "--full-index", "--no-ext-diff", "--no-textconv", "--raw"]
        shown = ["-M", f"-l{RENAME_LIMIT}", "--numstat", "--patch", "--unified=3", base, head]
        try:
            done = self._run([*command, *shown])
        except UpstreamFailed as error:
            # A clone without blobs, and nobody to ask for them: the names are here all the same.
            records = self.git(*command, "-M100%", base, head)
            lack = Sentence("lacks_contents", reason=error.message)
            return tuple(_nameless(record) for record in _raw(records)), [lack]
        lacks: list[str] = []
        if b"rename detection was skipped" in done.stderr:
            lacks.append(Sentence("lacks_moves", n=RENAME_LIMIT))
        files = []
        blobs: dict[str, tuple[str, str]] = {}
        for record, counts, patch in _sections(done.stdout):
            change, found = _change(record, counts, patch)
            lacks += found
            files.append(change)
            is_read = change.patch is not None and _suffix(change.filename) in MARKDOWN
            if is_read or (change.is_binary and _suffix(change.filename) in TEXT):
                blobs[change.filename] = (record[0], record[1])
        texts = self._blobs({blob for pair in blobs.values() for blob in pair if blob.strip("0")})
        return tuple(self._with_texts(change, texts, blobs.get(change.filename)) for change in files), lacks

    def _with_texts(self, change: FileChange, texts: Mapping[str, bytes], ids: tuple[str, str] | None) -> FileChange:
        if ids is None:
            return change
        old, new = (texts.get(blob) for blob in ids)
        if change.is_binary:
            return _utf16_change(change, old, new)
        return replace(
            change,
            old_text=None if old is None else _text(old),
            new_text=None if new is None else _text(new),
        )

    def _blobs(self, ids: Iterable[str]) -> dict[str, bytes]:
        """The contents of blobs by their ids; those that are not here are left out."""
        wanted = sorted(ids)
        answer = self.git("cat-file", "--batch", stdin="".join(f"{blob}\n" for blob in wanted).encode())
        found: dict[str, bytes] = {}
        at = 0
        for blob in wanted:
            end = answer.index(b"\n", at)
            header = answer[at:end].split()
            at = end + 1
            if header[-1] != b"missing":
                size = int(header[2])
                found[blob] = answer[at : at + size]
                at += size + 1
        return found

    def _remote(self) -> str:
        try:
            return without_credentials(self.git("remote", "get-url", "origin").decode().strip())
        except UpstreamFailed:
            return ""

    def _url(self, span: Span) -> str:
        base, head = span.base[:7], span.head[:7]
        page = _web_page(self._remote())
        if page is None:
            return f"{self.address} {base}..{head}"
        return f"{page}/{'-/' if 'gitlab' in page else ''}compare/{base}...{head}"

    def _source(self) -> str:
        page = _web_page(self._remote())
        return self.address if page is None else urlsplit(page).path.strip("/")

    def _license(self, commit: str) -> str:
        names = self.git("ls-tree", "-z", "--name-only", commit).split(b"\0")
        found = []
        for name in sorted(name.decode("utf-8", "replace") for name in names):
            if re.match(r"(licen[cs]e|copying)([.-]|$)", name, re.IGNORECASE):
                try:
                    text = _text(self.git("show", f"{commit}:{name}"))
                except (UpstreamFailed, NotFound):
                    continue
                first = next((line.strip() for line in text.splitlines() if line.strip()), "")
                known = next((label for words, label in _LICENSES if words.lower() in text.lower()), first[:80])
                found.append(f"{known} ({name})")
        return ", ".join(found)


def open_repository(where: str, home: Path) -> Repository:
    """The repository at a path, or the clone of a URL, made or fetched now.

    A clone that cannot be fetched is used as it is, and says so in `lacks`. Raises NotFound, Unavailable,
    Unauthenticated, or UpstreamFailed where there is no clone yet.
    """
    if _URL.match(where):
        return _clone(where, home)
    path = Path(where).expanduser()
    if not path.is_dir():
        raise NotFound(f"{where} is not a directory. Give the path of a git repository, or a URL.", param="repo")
    repository = Repository(path=path, address=str(path.resolve()))
    try:
        repository.git("rev-parse", "--git-dir")
    except UpstreamFailed as error:
        raise NotFound(f"{where} cannot be read as a git repository: {error.message}", param="repo") from error
    return repository


def without_credentials(url: str) -> str:
    """The URL as it may be shown."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _clone(url: str, home: Path) -> Repository:
    shown = without_credentials(url)
    slug = re.sub(r"[^\w.-]+", "-", shown.partition("://")[2] or shown).strip("-")[-60:]
    folder = home / "insight" / "repos" / f"{slug}-{hashlib.sha256(url.encode()).hexdigest()[:8]}.git"
    repository = Repository(path=folder, address=shown)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            _git(["clone", "--quiet", "--bare", "--filter=blob:none", "--", url, str(temporary)], address=shown)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return repository
    try:
        repository.git(
            "fetch", "--quiet", "--prune", "origin", "+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"
        )
    except (UpstreamFailed, Unauthenticated) as error:
        return replace(repository, lacks=(Sentence("lacks_newer", reason=error.message),))
    return repository


def _git(arguments: Sequence[str], *, address: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    settings = ["core.quotePath=false", "http.lowSpeedLimit=1000", "http.lowSpeedTime=60"]
    command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
    try:
        return subprocess.run(command, input=stdin, capture_output=True, check=True, env=_environment(address))
    except FileNotFoundError as error:
        raise Unavailable("git is not on the path; install it to read repositories.") from error
    except subprocess.CalledProcessError as error:
        said = without_secrets(error.stderr.decode("utf-8", "replace").strip())
        if re.search(r"Authentication failed|could not read Username|Permission denied|HTTP 40[13]", said):
            hint = "Check the key, or the token in GITHUB_TOKEN"
            raise Unauthenticated(f"{address} refused access: {said.splitlines()[-1]}. {hint}.") from error
        raise UpstreamFailed(f"git {_verb(arguments)} failed for {address}: {said or 'it gave no reason'}") from error


def _verb(arguments: Sequence[str]) -> str:
    return arguments[2] if arguments[0] == "-C" else arguments[0]


def without_secrets(text: str) -> str:
    """The text with user names and passwords in URLs left out."""
    return re.sub(r"(?<=://)[^\s/@]+@", "", text)


def _environment(address: str) -> dict[str, str]:
    # What a hook of another repository sets must not lead us there.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    environment["GIT_ALLOW_PROTOCOL"] = "file:git:http:https:ssh"
    token = environment.get("GITHUB_TOKEN")
    if token and address.startswith("https://github.com/"):
        secret = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        environment["GIT_CONFIG_COUNT"] = "1"
        environment["GIT_CONFIG_KEY_0"] = "http.https://github.com/.extraHeader"
        environment["GIT_CONFIG_VALUE_0"] = f"Authorization: Basic {secret}"
    return environment


_Record = tuple[str, str, str, bytes, bytes]
"""Old blob, new blob, letter, old path, new path."""


def _raw(output: bytes) -> list[_Record]:
    return _raw_fields(output.split(b"\0"))[0]


def _raw_fields(fields: list[bytes]) -> tuple[list[_Record], int]:
    """The records of `--raw -z`, and how many fields they took."""
    records: list[_Record] = []
    at = 0
    while at < len(fields) and fields[at].startswith(b":"):
        _, _, old_blob, new_blob, letter = fields[at].decode().split()
        n_paths = 2 if letter[0] in "RC" else 1
        paths = fields[at + 1 : at + 1 + n_paths]
        records.append((old_blob, new_blob, letter[0], paths[0], paths[-1]))
        at += 1 + n_paths
    return records, at


def _sections(output: bytes) -> Iterable[tuple[_Record, tuple[bytes, bytes], bytes]]:
    """Each file's record, counts and part of the patch, from `--raw --numstat --patch -z`."""
    start = output.find(b"\0\0diff --git ")
    names, patch = (output, b"") if start < 0 else (output[:start], output[start + 2 :])
    fields = names.split(b"\0")
    records, at = _raw_fields(fields)
    # git quotes the names in a patch, and each of its other lines begins with a sign: nothing else looks like this.
    sections = re.split(rb"(?m)^(?=diff --git )", patch)[1:]
    n = 0
    for record in records:
        plus, minus, path = fields[at].split(b"\t", 2)
        at += 1 if path else 3
        n_sections = 2 if record[2] == "T" else 1  # a file that became a link: a removal and an addition
        yield record, (plus, minus), b"".join(sections[n : n + n_sections])
        n += n_sections


def _change(record: _Record, counts: tuple[bytes, bytes], section: bytes) -> tuple[FileChange, list[str]]:
    _, _, letter, old_path, new_path = record
    is_binary = counts[0] == b"-"
    hunks = b"".join(
        part[part.find(b"\n@@ ") + 1 :] for part in re.split(rb"(?m)^(?=diff --git )", section) if b"\n@@ " in part
    )
    lacks: list[str] = []
    try:
        patch = hunks.decode("utf-8")
    except UnicodeDecodeError:
        patch = hunks.decode("utf-8", "replace")
        lacks.append(Sentence("lacks_utf8", file=_text(new_path)))
    change = FileChange(
        filename=_text(new_path),
        status=_STATUS.get(letter, "modified"),
        additions=0 if is_binary else int(counts[0]),
        deletions=0 if is_binary else int(counts[1]),
        patch=patch.removesuffix("\n") or None,
        previous_filename=_text(old_path) if letter in "RC" else None,
        is_binary=is_binary,
    )
    return change, lacks


def _nameless(record: _Record) -> FileChange:
    old_blob, new_blob, letter, old_path, new_path = record
    return FileChange(
        filename=_text(new_path),
        status=_STATUS.get(letter, "modified"),
        additions=0,
        deletions=0,
        patch=None,
        previous_filename=_text(old_path) if letter in "RC" else None,
        is_cut=old_blob != new_blob,
    )


def _utf16_change(change: FileChange, old: bytes | None, new: bytes | None) -> FileChange:
    """The change of text that git takes for binary, compared as text; as it was if it is none."""
    if not any(data is not None and data[:2] in (b"\xff\xfe", b"\xfe\xff") for data in (old, new)):
        return change
    try:
        old_text, new_text = ("" if data is None else _decoded(data) for data in (old, new))
    except UnicodeDecodeError:
        return change
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("old", old_text), ("new", new_text)):
            Path(folder, name).write_text(text, "utf-8", newline="\n")
        command = ["git", "diff", "--no-index", "--no-ext-diff", "--text", "--", "old", "new"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False, env=_environment(""))
    patch = done.stdout[done.stdout.find(b"\n@@ ") + 1 :].decode().removesuffix("\n") if done.stdout else ""
    hunks = parse_patch(patch)
    return replace(
        change,
        patch=patch or None,
        is_binary=False,
        additions=sum(1 for _ in added(hunks)),
        deletions=sum(1 for _ in removed(hunks)),
        old_text=None if old is None else old_text,
        new_text=None if new is None else new_text,
    )


def _decoded(data: bytes) -> str:
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    return text.replace("\r\n", "\n")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _day_of(unix_s: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=unix_s)).date()


def _web_page(remote: str) -> str | None:
    """The https address of a repository at GitHub or GitLab."""
    match = re.match(r"(?:https?://|ssh://git@|git@)([\w.-]*git(?:hub|lab)[\w.-]*)[:/](.+?)(?:\.git)?/?$", remote)
    return f"https://{match[1]}/{match[2]}" if match else None
