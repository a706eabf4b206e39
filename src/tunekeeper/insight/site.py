"""The static site: files that any web server gives out, and that open from a disk or below any path as they are.

    index.html                     the newest days, categories, the next retirements
    archive.html                   every report by month
    category/<category>.html       the reports of one category
    YYYY/MM/<report>.html          one report
    retirements.html               a calendar of retirement dates; retirements.ics for calendars
    search.html, search/           the search, which runs in the browser (`search.py`)
    feed.xml, feeds/<category>.xml Atom
    assets/                        one style sheet, two scripts

The same reports give the same bytes: nothing here looks at a clock. No page fetches anything from elsewhere, and the
policy in each page's head forbids scripts and styles but these.
"""

import calendar
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunekeeper.errors import InvalidConfig, Unavailable
from tunekeeper.insight.calendar import Retirement, in_order, to_ics
from tunekeeper.insight.feeds import to_atom
from tunekeeper.insight.markup import TYPES, to_html, type_class
from tunekeeper.insight.published import Published, PublishedItem, Source
from tunekeeper.insight.search import search_files

PAGES = Path(__file__).with_name("pages")
ASSETS = ("site.css", "site.js", "search.js")
MARK = ".tunekeeper-site"
"""A file that tells a site of ours from a directory that must not be replaced."""

MIN_ON_INDEX = 20
MAX_UPCOMING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What a site is made of."""

    reports: Sequence[Published]
    """Oldest first."""
    retirements: Sequence[Retirement] = ()
    title: str = "Diff Insight Report"
    base_url: str = ""
    """Where the site will be, for feeds and canonical links; without it they are relative."""
    language: str = ""
    """Of the words around the reports; empty: that of most reports, if there are words in it."""
    licenses: Mapping[str, str] = field(default_factory=dict)
    """Licence of each source by its name (`owner/repository`); under "" that of all others."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if self.base_url and (parts.scheme not in ("http", "https") or not parts.netloc):
            raise InvalidConfig(f"{self.base_url} is no address of a site; it begins with https://.", param="base_url")
        if self.language and self.language not in languages():
            known = ", ".join(languages())
            raise InvalidConfig(f"The site does not speak {self.language!r}. It speaks: {known}.", param="language")


def languages() -> list[str]:
    """The languages that the site has words in."""
    return sorted(path.stem for path in PAGES.glob("*.yaml"))


def build(site: Site) -> Iterator[tuple[str, bytes]]:
    """The files of the site, each with its path."""
    writer = _Writer(site)
    reports = site.reports
    categories = sorted(Counter(report.category for report in reports).items())
    newest_first = sorted(reports, key=lambda report: (-report.day.toordinal(), report.category))
    retirements = in_order(site.retirements)
    as_of = max([*(r.seen for r in retirements if r.seen), *(report.day for report in reports)], default=None)
    page = writer.page
    yield page(
        "index.html",
        days=_first_days(newest_first),
        n_reports=len(reports),
        categories=categories,
        upcoming=[r for r in retirements if r.day and as_of and r.day >= as_of][:MAX_UPCOMING],
    )
    months = [(day, list(group)) for day, group in groupby(newest_first, lambda report: report.day.replace(day=1))]
    yield page("archive.html", months=months, n_reports=len(reports))
    yield page("search.html", categories=categories)
    yield page("retirements.html", **writer.months_of(retirements, as_of))
    yield "retirements.ics", to_ics(retirements, title=f"{site.title}: {writer.words['retirements']}")
    yield "feed.xml", to_atom(reports, title=site.title, name="", path="feed.xml", base_url=writer.base_url)
    for category, _ in categories:
        own = [report for report in reports if report.category == category]
        yield page(f"category/{category}.html", category=category, reports=own[::-1])
        feed = f"feeds/{category}.xml"
        title = f"{site.title}: {category}"
        yield feed, to_atom(own, title=title, name=category, path=feed, base_url=writer.base_url)
        for older, report, newer in zip([None, *own], own, [*own[1:], None], strict=False):
            body = writer.markup(to_html(report.tokens, type_names=writer.words["types"]))
            yield page(
                report.path, report=report, body=body, older=older, newer=newer, license=writer.license_of(report)
            )
    for path, script in search_files(newest_first, type_names=writer.words["types"]).items():
        yield path, script.encode()
    for name in ASSETS:
        yield f"assets/{name}", (PAGES / name).read_bytes()
    yield MARK, b"Made by tunekeeper site; replaced as a whole each time.\n"


def write(files: Iterable[tuple[str, bytes]], directory: Path) -> int:
    """Put the files in the place of what the directory held; return their number.

    They are written beside it and renamed: a run that dies leaves the old site. Raises InvalidConfig where the
    directory holds something that is no site of ours, Unavailable where it cannot be replaced.
    """
    directory = directory.resolve()
    if directory.exists() and not _is_ours(directory):
        raise InvalidConfig(
            f"{directory} holds something that is no site of ours, and the site replaces the whole directory. "
            "Choose an empty or a new one.",
            param="out",
        )
    new, old = (directory.with_name(f".{directory.name}.{word}") for word in ("new", "old"))
    number = 0
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(directory.parent):
            _remove(new)
            try:
                for path, content in files:
                    number += 1
                    target = new / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
                _remove(old)
                if directory.exists():
                    directory.rename(old)
                new.rename(directory)
            finally:
                if old.exists() and not directory.exists():
                    old.rename(directory)
                _remove(new)
            _remove(old)
    except OSError as error:
        raise Unavailable(
            f"The site cannot be written to {directory}: {error.strerror or error}. The old one is as it was."
        ) from error
    return number


def _is_ours(directory: Path) -> bool:
    return directory.is_dir() and ((directory / MARK).is_file() or not any(directory.iterdir()))


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Two runs that write beside each other wait for each other."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Month:
    """A month as the calendar shows it: weeks of (day, retirements), and the days that have some."""

    first: date
    weeks: list[list[tuple[date | None, list[Retirement]]]]
    days: list[tuple[date, list[Retirement]]]


class _Writer:
    """The templates with one site's words and dates."""

    def __init__(self, site: Site) -> None:
        try:
            import yaml
            from babel import Locale
            from babel.core import get_global
            from jinja2 import Environment, FileSystemLoader, StrictUndefined
            from markupsafe import Markup
        except ImportError as error:
            raise Unavailable(f"The site needs {error.name}: pip install 'tunekeeper[insight]'.") from error
        self.language = site.language or _most_used(site.reports)
        self.words: dict[str, Any] = yaml.safe_load((PAGES / f"{self.language}.yaml").read_text("utf-8"))
        # With the territory where most speak it: on which day weeks begin depends on that.
        self.locale = Locale.parse(get_global("likely_subtags").get(self.language, self.language))
        self.base_url = site.base_url.rstrip("/")
        self.licenses = site.licenses
        licenses: dict[Source, str] = {}
        for report in reversed(site.reports):
            if report.source and not licenses.get(report.source):
                licenses[report.source] = self.license_of(report)
        self.markup: Callable[[str], str] = Markup
        self.templates = Environment(
            loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
        )
        self.templates.globals |= {
            "site_title": site.title,
            "base_url": self.base_url,
            "language": self.language,
            "t": self.words,
            "say": self.say,
            "day": lambda day: self.day_name(day, "long"),
            "full_day": lambda day: self.day_name(day, "full"),
            "month_name": self.month_name,
            "weekdays": self.weekdays(),
            "credit": self.credit,
            "sources": list(licenses.items()),
            "by_weight": _by_weight,
            "type_counts": _type_counts,
            "type_class": type_class,
            "is_web": lambda address: address.startswith(("https://", "http://")),
            "short": _short,
        }

    def page(self, path: str, **values: Any) -> tuple[str, bytes]:
        """One page from the template of its name, or of its directory's."""
        first = path.split("/")[0]
        kind = first.removesuffix(".html") if "/" not in path or first == "category" else "report"
        template = self.templates.get_template(f"{kind}.html.jinja")
        return path, template.render(path=path, root="../" * path.count("/"), **values).encode()

    def say(self, key: str, n: int) -> str:
        """The words for n of something."""
        forms = self.words[key]
        text = forms if isinstance(forms, str) else forms.get(self.locale.plural_form(n), forms["other"])
        return str(text).format(n=n)

    def day_name(self, day: date, form: str) -> str:
        """A date as people write it."""
        from babel.dates import format_date

        return str(format_date(day, form, self.locale))

    def month_name(self, day: date) -> str:
        """Month and year."""
        from babel.dates import format_skeleton

        return str(format_skeleton("yMMMM", day, locale=self.locale))

    def weekdays(self) -> list[str]:
        """Short names, from the day on which weeks begin here."""
        names = self.locale.days["stand-alone"]["abbreviated"]
        return [str(names[(self.locale.first_week_day + at) % 7]) for at in range(7)]

    def license_of(self, report: Published) -> str:
        """The licence of a report's source: as given for the site, else as the report says; empty if neither."""
        name = report.source.name if report.source else ""
        return self.licenses.get(name) or self.licenses.get("") or report.license

    def credit(self, source: Source, license_: str) -> str:
        """Whom to credit, and the licence."""
        license_ = license_ or self.words["license_unknown"]
        name = f'<a href="{escape(source.url)}" target="_blank" rel="noopener noreferrer">{escape(source.name)}</a>'
        words = self.words
        return self.markup(
            f"{escape(words['source'])}: {name if source.url else escape(source.name)} · "
            f"{escape(words['license'])}: {escape(license_)}"
        )

    def months_of(self, retirements: Sequence[Retirement], as_of: date | None) -> dict[str, Any]:
        """The retirements by month: those to come, those before the month of `as_of`, and those without a date."""
        cut = as_of.replace(day=1) if as_of else date.min
        dated = [(r.day, r) for r in retirements if r.day]
        months = [self._month(list(group)) for _, group in groupby(dated, lambda pair: (pair[0].year, pair[0].month))]
        return {
            "coming": [month for month in months if month.first >= cut],
            "past": [month for month in reversed(months) if month.first < cut],
            "undated": [r for r in retirements if r.day is None],
            "as_of": as_of,
            "cut": cut,
        }

    def _month(self, dated: Sequence[tuple[date, Retirement]]) -> _Month:
        days = {day: [r for _, r in group] for day, group in groupby(dated, lambda pair: pair[0])}
        first = dated[0][0].replace(day=1)
        weeks = calendar.Calendar(self.locale.first_week_day).monthdatescalendar(first.year, first.month)
        shown = [[(day if day.month == first.month else None, days.get(day, [])) for day in week] for week in weeks]
        return _Month(
            first, [[(day, found if day else []) for day, found in week] for week in shown], list(days.items())
        )


def _most_used(reports: Sequence[Published]) -> str:
    known = Counter(language for report in reports if (language := report.language.split("-")[0]) in languages())
    return min(known, key=lambda language: (-known[language], language), default="en")


def _first_days(newest_first: Sequence[Published]) -> list[tuple[date, list[Published]]]:
    """Whole days until there are enough reports."""
    days: list[tuple[date, list[Published]]] = []
    for day, group in groupby(newest_first, lambda report: report.day):
        if sum(len(reports) for _, reports in days) >= MIN_ON_INDEX:
            break
        days.append((day, list(group)))
    return days


def _short(address: str) -> str:
    """Host and last part of an address."""
    host, _, path = address.split("://", 1)[1].partition("/")
    return f"{host}/…/{path.rsplit('/', 1)[1]}" if "/" in path else f"{host}/{path}"


def _by_weight(items: Sequence[PublishedItem]) -> list[PublishedItem]:
    return sorted(items, key=lambda item: TYPES.index(item.type) if item.type in TYPES else len(TYPES))


def _type_counts(report: Published) -> list[tuple[str, int]]:
    counts = Counter(item.type for item in report.items)
    return [(kind, counts[kind]) for kind in TYPES if counts[kind]]
