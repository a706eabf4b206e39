"""GitHub's answer to "compare these two", as a ChangeSet: from a file, or asked for with a token.

    read_compare(Path("compare.json"))                                          # one answer, or a list of its pages
    fetch_compare("https://github.com/owner/docs/compare/v1...v2", token=token)

The answer has caps, and each that was hit is said in `lacks`: 300 files, and patches that are too large are left out
or cut.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from tunekeeper.diffs.patch import added, parse_patch, removed
from tunekeeper.errors import (
    InvalidData,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    TunekeeperError,
    Unauthenticated,
    UpstreamFailed,
)
from tunekeeper.insight.catalogue import Sentence
from tunekeeper.insight.changes import ChangeSet, FileChange, Status
from tunekeeper.insight.source import without_credentials

if TYPE_CHECKING:
    import httpx

MAX_FILES = 300
"""GitHub lists no more files than this in an answer."""
BINARY = frozenset(
    re.findall(
        r"\S+",
        ".avif .bmp .docx .eot .gif .gz .ico .jpeg .jpg .mov .mp3 .mp4 .otf .pdf .png .pptx .tar .tiff .ttf .wav .webm "
        ".webp .woff .woff2 .xlsx .zip",
    )
)
"""Suffixes of files that never have a patch."""
_ATTEMPTS = 3
_URL = re.compile(r"https?://([\w.:-]+)/([\w.-]+)/([\w.-]+)/compare/(?:[\w.-]+:)?(.+?)\.\.\.(?:[\w.-]+:)?([^?#]+)")


def read_compare(path: Path, *, date: str | None = None) -> ChangeSet:
    """The answer in a JSON file; raises InvalidData that says what is wrong with it."""
    try:
        answer = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{path} is not JSON: {error}. Save the answer of GitHub's compare as it is.") from error
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.", param="compare") from error
    return parse_compare(answer if isinstance(answer, list) else [answer], where=str(path), date=date)


def is_compare_url(text: str) -> bool:
    """Whether this is the address of a comparison at GitHub."""
    return text.startswith(("https://", "http://"))


def fetch_compare(
    url: str,
    *,
    token: str | None = None,
    api_url: str | None = None,
    transport: "httpx.BaseTransport | None" = None,
    sleep: Callable[[float], None] = time.sleep,
) -> ChangeSet:
    """Ask GitHub for the comparison that this address shows, all pages of it.

    Raises Unauthenticated, PermissionDenied, NotFound, Overloaded or UpstreamFailed.
    """
    import httpx

    match = _URL.match(url)
    if match is None:
        raise InvalidRequest(
            f"{url} is no comparison. Give https://github.com/OWNER/NAME/compare/BASE...HEAD.", param="compare"
        )
    host, owner, name, base, head = match.groups()
    api = api_url or ("https://api.github.com" if host == "github.com" else f"https://{host}/api/v3")
    headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    pages = []
    following: str | None = f"{api.rstrip('/')}/repos/{owner}/{name}/compare/{base}...{head}?per_page=100&page=1"
    with httpx.Client(headers=headers, transport=transport, timeout=60, follow_redirects=True) as client:
        while following:
            response = _get(client, following, sleep)
            try:
                pages.append(response.json())
            except ValueError as error:
                raise UpstreamFailed(f"{host} answered with something that is not JSON.") from error
            following = response.links.get("next", {}).get("url")
    return parse_compare(pages, where=url)


def nothing(url: str, error: TunekeeperError, *, date: str) -> ChangeSet:
    """The change set of a source that could not be read: no files, and why."""
    lack = Sentence("lacks_everything", reason=error.message)
    return ChangeSet(date=date, url=without_credentials(url), files=(), lacks=(lack,))


def parse_compare(pages: Sequence[Any], *, where: str, date: str | None = None) -> ChangeSet:
    """The pages of one answer together; raises InvalidData."""
    files: dict[str, FileChange] = {}
    lacks: list[str] = []
    commits: list[Any] = []
    for page in pages:
        if not isinstance(page, Mapping) or not isinstance(page.get("files", []), list):
            raise InvalidData(f"{where} is no answer of GitHub's compare: it has no list of `files`.")
        if "files" not in page and "commits" not in page:
            raise InvalidData(f"{where} is no answer of GitHub's compare: it has no list of `files`.")
        commits += page.get("commits") or []
        for entry in page.get("files", []):
            change = _file(entry, f"{where}, files[{len(files)}]")
            files.setdefault(change.filename, change)
    if len(files) >= MAX_FILES:
        lacks.append(Sentence("lacks_files_over_cap", n=MAX_FILES))
    lacks += _cuts(files.values())
    first: Mapping[str, Any] = pages[0] if pages else {}
    url = first.get("html_url") or first.get("permalink_url") or where
    return ChangeSet(
        date=_date(date or first.get("date") or _last_day(commits), where),
        url=str(url),
        files=tuple(files.values()),
        base=_sha(first.get("base_commit")),
        head=_sha(commits[-1]) if commits else "",
        category=str(first.get("category") or ""),
        source=_owner_and_name(str(url)),
        lacks=tuple(lacks),
    )


def _file(entry: Any, where: str) -> FileChange:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("filename"), str) or not entry["filename"]:
        raise InvalidData(f"{where} has no `filename`.")
    status = entry.get("status", "modified")
    if status not in get_args(Status):
        status = "changed"
    patch, previous = entry.get("patch"), entry.get("previous_filename")
    if not isinstance(patch, str | None) or not isinstance(previous, str | None):
        raise InvalidData(f"{where} ({entry['filename']}): `patch` and `previous_filename` must be texts.")
    hunks = parse_patch(patch or "")
    seen = (sum(1 for _ in added(hunks)), sum(1 for _ in removed(hunks)))
    counts = tuple(entry.get(name, default) for name, default in zip(("additions", "deletions"), seen, strict=True))
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise InvalidData(f"{where} ({entry['filename']}): `additions` and `deletions` must be whole numbers.")
    is_binary = not patch and not any(counts) and PurePosixPath(entry["filename"]).suffix.lower() in BINARY
    return FileChange(
        filename=entry["filename"],
        status=status,
        additions=counts[0],
        deletions=counts[1],
        patch=patch or None,
        previous_filename=previous,
        is_binary=is_binary,
        is_cut=seen != counts or any(hunk.is_cut for hunk in hunks),
    )


def _cuts(files: Iterable[FileChange]) -> list[str]:
    cut = [change for change in files if change.is_cut]
    left_out = [change.filename for change in cut if change.patch is None]
    shortened = [change.filename for change in cut if change.patch is not None]
    lacks: list[str] = []
    if left_out:
        lacks.append(Sentence("lacks_patches_left_out", n=len(left_out), files=tuple(left_out)))
    if shortened:
        lacks.append(Sentence("lacks_patches_cut", n=len(shortened), files=tuple(shortened)))
    return lacks


def _get(client: "httpx.Client", url: str, sleep: Callable[[float], None]) -> "httpx.Response":
    import httpx

    for attempt in range(1, _ATTEMPTS + 1):
        try:
            response = client.get(url)
        except httpx.HTTPError as error:
            problem = UpstreamFailed(f"{httpx.URL(url).host} could not be reached: {error}.")
            if attempt == _ATTEMPTS:
                raise problem from error
        else:
            if response.status_code < 500:
                return _checked(response)
            problem = UpstreamFailed(f"{response.url.host} failed with status {response.status_code}.")
            if attempt == _ATTEMPTS:
                raise problem
        sleep(2.0**attempt)
    raise AssertionError("the last attempt returns or raises")


def _checked(response: "httpx.Response") -> "httpx.Response":
    host, status = response.url.host, response.status_code
    if status == 401:
        raise Unauthenticated(f"{host} refused the token. Give a valid one in GITHUB_TOKEN, or none.")
    if status == 429 or (status == 403 and response.headers.get("x-ratelimit-remaining") == "0"):
        reset = response.headers.get("x-ratelimit-reset", "")
        until = f" until {datetime.fromtimestamp(int(reset), UTC):%Y-%m-%d %H:%M} UTC" if reset.isdigit() else ""
        raise Overloaded(f"{host} takes no more requests{until}. Wait, or give a token in GITHUB_TOKEN.")
    if status == 403:
        raise PermissionDenied(f"{host} does not let this token read the repository.")
    if status == 404:
        raise NotFound(f"{host} knows no such comparison, or the token in GITHUB_TOKEN may not see it.")
    if not response.is_success:
        raise UpstreamFailed(f"{host} answered with status {status}.")
    return response


def _last_day(commits: Sequence[Any]) -> str:
    try:
        return max(str(commit["commit"]["committer"]["date"])[:10] for commit in commits)
    except (KeyError, TypeError, ValueError):
        return datetime.now(UTC).date().isoformat()


def _date(text: Any, where: str) -> str:
    try:
        return datetime.fromisoformat(str(text)[:10]).date().isoformat()
    except ValueError as error:
        raise InvalidData(f"{where}: the date {text!r} is not one like 2025-06-12.") from error


def _sha(commit: Any) -> str:
    return str(commit.get("sha", "")) if isinstance(commit, Mapping) else ""


def _owner_and_name(url: str) -> str:
    match = re.match(r"https?://[^/]+/([\w.-]+/[\w.-]+)/", url)
    return match[1] if match else ""
