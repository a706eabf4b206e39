"""Which report a changed path belongs to, and the alarm when a category no longer sees what it was made for.

    categories:
      openai: articles/ai-services/openai/**          # a pattern, or a list of them
      search:
        paths: ["articles/search/**", "!articles/search/media/**"]
        silent_after_days: 30
    silent_after_days: 60                             # for those that say nothing themselves; this is the default
    rest: misc                                        # optional: where everything else goes

`*` and `?` stay within a folder, `**` does not, a folder's name means all that is below it, `!` excludes. The first
category that matches takes the path. Paths that match none are listed.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tunekeeper.errors import InvalidConfig, NotFound, Unavailable
from tunekeeper.insight.catalogue import Sentence
from tunekeeper.insight.changes import ChangeSet, FileChange
from tunekeeper.insight.source import Repository

SILENT_AFTER_DAYS = 60
_NAME = re.compile(r"[^\W_][\w.-]*")
_LEAST_MOVED = 3
"""Renames out of a category that make an alarm where the tree is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A name and the paths that belong to it."""

    name: str
    paths: tuple[str, ...]
    """Patterns; those with `!` exclude."""
    silent_after_days: int = SILENT_AFTER_DAYS
    """Days without a change after which the silence is an alarm; 0: never."""
    silent_after_reports: int = 0
    """The same in days on which something else changed; 0: never."""

    def matches(self, path: str) -> bool:
        """Whether the path belongs here."""
        return any(_regex(p).fullmatch(path) for p in self.included) and not any(
            _regex(p[1:]).fullmatch(path) for p in self.paths if p.startswith("!")
        )

    @property
    def included(self) -> tuple[str, ...]:
        """The patterns without those that exclude."""
        return tuple(pattern for pattern in self.paths if not pattern.startswith("!"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Categories:
    """All categories, in order, and where the rest goes."""

    categories: tuple[Category, ...]
    rest: str = ""

    def of(self, path: str) -> str:
        """The category of a path; empty if it has none."""
        return next((category.name for category in self.categories if category.matches(path)), self.rest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """A category that does not see what it was made for."""

    category: str
    kind: Literal["moved", "missing", "silent"]
    message: str
    proposed: tuple[str, ...] = ()
    """Patterns to use instead."""


def load_categories(path: Path) -> Categories:
    """Read the YAML file; raises InvalidConfig that says what is wrong with it."""
    try:
        import yaml
    except ImportError as error:
        raise Unavailable("Categories need pyyaml: pip install 'tunekeeper[insight]'") from error
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.", param="categories") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not valid YAML: {error}", param="categories") from error
    return parse_categories(data, where=str(path))


def parse_categories(data: Any, *, where: str) -> Categories:
    """Categories from what the YAML says; raises InvalidConfig."""
    if not isinstance(data, Mapping) or not isinstance(data.get("categories"), Mapping) or not data["categories"]:
        raise _invalid(where, "needs `categories:` with a name and its paths on each line below")
    _refuse_unknown(data, {"categories", "rest", "silent_after_days", "silent_after_reports"}, where)
    defaults = {name: data[name] for name in ("silent_after_days", "silent_after_reports") if name in data}
    found = tuple(_category(name, value, defaults, where) for name, value in data["categories"].items())
    rest = data.get("rest") or ""
    if not isinstance(rest, str) or (rest and not _NAME.fullmatch(rest)):
        raise _invalid(where, f"rest: {rest!r} is no name of a category")
    return Categories(categories=found, rest=rest)


def split(change_set: ChangeSet, categories: Categories) -> tuple[dict[str, ChangeSet], tuple[str, ...]]:
    """One change set for each category that has changes, and the paths that match none.

    A file that moved out of a category is still told there.
    """
    files: dict[str, list[FileChange]] = {}
    unmatched = []
    for change in change_set.files:
        name = _matched(change.filename, categories) or _matched(change.previous_filename or "", categories)
        if name := name or categories.rest:
            files.setdefault(name, []).append(change)
        else:
            unmatched.append(change.filename)
    named = {name: replace(change_set, files=tuple(those), category=name) for name, those in sorted(files.items())}
    return named, tuple(unmatched)


def folders(paths: Iterable[str]) -> str:
    """Paths as their folders with how many are in each, most first."""
    counts = Counter(str(PurePosixPath(path).parent) for path in paths)
    return ", ".join(f"{folder}/ ({n:,})" if n > 1 else f"{folder}/" for folder, n in counts.most_common())


def moved_within(change_set: ChangeSet, categories: Categories) -> list[Alarm]:
    """Alarms from the renames of a change set alone, where no tree is known."""
    renames = {c.previous_filename: c.filename for c in change_set.files if c.previous_filename}
    alarms = []
    for category in categories.categories:
        out = {old: new for old, new in renames.items() if category.matches(old) and not category.matches(new)}
        here = sum(1 for change in change_set.files if category.matches(change.filename))
        if len(out) >= _LEAST_MOVED and len(out) > here:
            alarms.append(_moved_alarm(category, category.included, out, Sentence("alarm_files", n=len(out))))
    return alarms


def watch_paths(repository: Repository, categories: Categories, *, base: str | None, head: str) -> list[Alarm]:
    """Alarms for categories whose folder moved or is not there, seen in the repository itself.

    A pattern that no file of `head` matches is looked up in the history: the commit that emptied it says where its
    files went. Between `base` and `head` a category also alarms when most of its files left it.
    """
    now = repository.tree(head)
    before = repository.tree(base) if base else {}
    alarms: list[Alarm] = []
    for category in categories.categories:
        empty = [pattern for pattern in category.included if not any(_regex(pattern).fullmatch(path) for path in now)]
        if empty:
            alarms.append(_empty_alarm(repository, category, empty, now, head))
            continue
        was = {path for path in before if category.matches(path)}
        left = {path for path in was if path not in now}
        if len(left) * 2 > len(was):
            went = _whereabouts(left, before, now, category)
            if len(went) * 2 > len(was):
                alarms.append(
                    _moved_alarm(
                        category, category.included, went, Sentence("alarm_some_files", n=len(went), of=len(was))
                    )
                )
    return alarms


def silence(category: Category, *, last_match: str | None, quiet_reports: int, today: date) -> Alarm | None:
    """The alarm of a category that used to change and no longer does."""
    if last_match is None:
        return None
    days = (today - date.fromisoformat(last_match)).days
    is_long = 0 < category.silent_after_days <= days
    if not is_long and not 0 < category.silent_after_reports <= quiet_reports:
        return None
    key = "alarm_silent_while_others" if quiet_reports else "alarm_silent"
    return Alarm(
        category=category.name,
        kind="silent",
        message=Sentence(key, category=category.name, n=days, day=last_match, others=quiet_reports),
    )


def pathspecs(category: Category) -> list[str]:
    """The patterns as git takes them."""
    return [f":(glob){_full(pattern)}" for pattern in category.included]


def _matched(path: str, categories: Categories) -> str:
    return next((category.name for category in categories.categories if category.matches(path)), "")


def _empty_alarm(
    repository: Repository, category: Category, empty: Sequence[str], now: Mapping[str, str], head: str
) -> Alarm:
    went: dict[str, str] = {}
    n_left = 0
    days = []
    for pattern in empty:
        touched = repository.last_touched([f":(glob){_full(pattern)}"], head)
        if touched is None:
            continue
        commit, day = touched
        days.append(day)
        was = repository.tree(f"{commit}^") if repository.has(f"{commit}^") else {}
        left = {path for path in was if _regex(pattern).fullmatch(path)}
        n_left += len(left)
        renames = {old: new for old, new in repository.renames(commit).items() if old in left} if was else {}
        # Where the commit itself does not say it: a copy came earlier, or the files moved on since.
        went |= _whereabouts(left - renames.keys(), was, now, category) | renames
    named = ", ".join(empty)
    if went and len(went) * 2 >= n_left:
        key = "alarm_all_files_of" if len(went) == n_left else "alarm_some_files_of"
        what = Sentence(key, n=len(went), of=n_left, patterns=named)
        return _moved_alarm(category, empty, went, what, day=max(days))
    about = {"category": category.name, "patterns": named}
    message = Sentence("alarm_missing", **about, day=max(days)) if days else Sentence("alarm_never", **about)
    return Alarm(category=category.name, kind="missing", message=message)


def _moved_alarm(
    category: Category, patterns: Sequence[str], went: Mapping[str, str], what: str, *, day: str = ""
) -> Alarm:
    roots = Counter(_roots(old, new) for old, new in went.items())
    proposed = []
    for (old_root, new_root), _ in roots.most_common():
        for pattern in map(_full, patterns):
            if _is_below(pattern, old_root):
                proposed.append(_rebased(pattern, old_root, new_root))
            elif _is_below(old_root, _root(pattern)):
                proposed.append(f"{new_root}/**")
    proposed = [*dict.fromkeys(proposed)][:3]
    (old_root, new_root), _ = roots.most_common(1)[0]
    for root in (_root(_full(pattern)) for pattern in patterns):  # the whole of the folder that is watched
        if _is_below(root, old_root) and all(_is_below(path, root) for path in went):
            old_root, new_root = root, _rebased(root, old_root, new_root)
            break
    key = f"alarm_moved{'_on' if day else ''}"
    moved = Sentence(key, category=category.name, what=what, old=old_root or ".", new=new_root or ".", day=day)
    return Alarm(
        category=category.name,
        kind="moved",
        message=Sentence("alarm_propose", moved=moved, paths=" | ".join(proposed)) if proposed else moved,
        proposed=tuple(proposed),
    )


def _is_below(path: str, folder: str) -> bool:
    return not folder or f"{path}/".startswith(f"{folder}/")


def _rebased(path: str, old_root: str, new_root: str) -> str:
    """The path with the folder that it is below exchanged."""
    return "/".join(filter(None, (new_root, path[len(old_root) :].lstrip("/"))))


def _whereabouts(
    left: Iterable[str], before: Mapping[str, str], now: Mapping[str, str], category: Category
) -> dict[str, str]:
    """Where files went: to the same content elsewhere, else to a new file of the same name."""
    by_blob: dict[str, list[str]] = {}
    by_name: dict[str, list[str]] = {}
    for path, blob in now.items():
        if not category.matches(path):
            by_blob.setdefault(blob, []).append(path)
            if path not in before:
                by_name.setdefault(PurePosixPath(path).name, []).append(path)
    went = {}
    for path in left:
        named = by_name.get(PurePosixPath(path).name, [])
        # One name may be common (index.md): then the folder's must be the same too.
        places = by_blob.get(before[path]) or (
            named if len(named) == 1 else [each for each in named if _common_end(path, each) > 1]
        )
        if places:
            went[path] = max(places, key=lambda place: (_common_end(path, place), place))
    return went


def _common_end(one: str, other: str) -> int:
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(one.count("/"), other.count("/")) + 1)


def _roots(old: str, new: str) -> tuple[str, str]:
    """What stands before the part that both paths end with: the folder that moved and where to."""
    n = _common_end(old, new)
    return tuple("/".join(path.split("/")[: -n or None]) for path in (old, new))  # type: ignore[return-value]


def _root(pattern: str) -> str:
    """The folders of a pattern before its first wildcard."""
    parts = pattern.split("/")
    fixed = next((at for at, part in enumerate(parts) if re.search(r"[*?]", part)), len(parts) - 1)
    return "/".join(parts[:fixed])


def _full(pattern: str) -> str:
    """The pattern with `/**` where it names a folder."""
    pattern = pattern.strip("/") if pattern != "/" else "**"
    is_folder = not re.search(r"[*?]", pattern) and not PurePosixPath(pattern).suffix
    return f"{pattern}/**" if is_folder else pattern


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", _full(pattern))
    words = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts), re.DOTALL)


def _category(name: Any, value: Any, defaults: Mapping[str, Any], where: str) -> Category:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _invalid(where, f"{name!r} is no name of a category; use letters, digits, `.`, `-`")
    settings = dict(value) if isinstance(value, Mapping) else {"paths": value}
    _refuse_unknown(settings, {"paths", "silent_after_days", "silent_after_reports"}, f"{where}, {name}")
    paths = settings.get("paths")
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(path, str) and path.strip("!/ ") for path in paths):
        raise _invalid(where, f"{name} needs `paths`: a pattern or a list of patterns")
    if all(path.startswith("!") for path in paths):
        raise _invalid(where, f"{name} has no path that it takes")
    numbers = {**defaults, **{key: settings[key] for key in settings if key != "paths"}}
    for key, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise _invalid(where, f"{name}: {key} is {number!r}; it must be a whole number, 0 for never")
    return Category(name=name, paths=tuple(paths), **numbers)


def _refuse_unknown(data: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(str(key) for key in data if key not in known):
        raise _invalid(where, f"knows no {unknown[0]!r}, only {', '.join(sorted(known))}")


def _invalid(where: str, problem: str) -> InvalidConfig:
    return InvalidConfig(f"{where}: {problem}.", param="categories")
