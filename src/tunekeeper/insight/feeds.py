"""Atom feeds of reports (RFC 4287): one of all, one a category. The same reports give the same bytes."""

from collections.abc import Sequence
from datetime import UTC, datetime, time
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from tunekeeper.errors import Unavailable
from tunekeeper.insight.published import Published

MAX_ENTRIES = 50
"""A reader wants the news; the archive has the rest."""


def to_atom(reports: Sequence[Published], *, title: str, name: str, path: str, base_url: str = "") -> bytes:
    """The newest reports as a feed that lies at `path` on the site; `name` tells this site's feeds apart.

    Without a base URL the links are relative to the feed, which readers resolve against its address.
    Ids do not depend on where the site is. Raises Unavailable where the package `feedgen` is missing.
    """
    try:
        from feedgen.feed import FeedGenerator
    except ImportError as error:
        raise Unavailable("Feeds need the package feedgen: pip install 'tunekeeper[insight]'.") from error

    root = f"{base_url}/" if base_url else "../" * path.count("/")
    newest = sorted(reports, key=lambda report: (report.day, report.category), reverse=True)[:MAX_ENTRIES]
    feed = FeedGenerator()
    feed.id(_urn(f"feed:{name}"))
    feed.title(title)
    feed.author({"name": "Tunekeeper"})
    feed.generator("Tunekeeper")
    feed.link(href=f"{root}index.html", rel="alternate", type="text/html")
    feed.link(href=root + quote(path), rel="self", type="application/atom+xml")
    feed.updated(_midnight(newest[0]) if newest else datetime(1970, 1, 1, tzinfo=UTC))
    for report in newest:
        entry = feed.add_entry(order="append")
        entry.id(_urn(f"report:{report.category}:{report.day}:{report.permalink}"))
        entry.title(f"{report.title} {report.day}")
        entry.link(href=root + quote(report.path), rel="alternate", type="text/html")
        entry.updated(_midnight(report))
        entry.published(_midnight(report))
        entry.category(term=report.category)
        entry.content(_content(report), type="html")
        if source := report.source:
            entry.rights(f"Source: {source.name} {source.url}".strip())
    return bytes(feed.atom_str(pretty=True))


def _content(report: Published) -> str:
    from html import escape

    parts = [f"<p>{escape(report.summary)}</p>"]
    for heading, points in report.highlights.items():
        listed = "".join(f"<li>{escape(point)}</li>" for point in points)
        parts.append(f"<h3>{escape(heading)}</h3><ul>{listed}</ul>")
    return f'<div lang="{escape(report.language)}">{"".join(parts)}</div>'


def _midnight(report: Published) -> datetime:
    return datetime.combine(report.day, time(), UTC)


def _urn(name: str) -> str:
    return f"urn:uuid:{uuid5(NAMESPACE_URL, f'tunekeeper:{name}')}"
