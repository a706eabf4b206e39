"""A report's news sent to people and programs: what hits comes first, the rest is a link away.

    news = notice_of(report, url="https://docs.example/2025/06/….html", hits=["deployment chat runs on gpt-4 …"])
    failures = send(news, Targets(apprise=("slack://…",), webhooks=("https://ci.example/hook",), secret="whsec_…"))

A target that fails is said, and stops neither the others nor the run: the report is on disk already.
Addresses carry tokens, so that a failure names only the service and its host.
A webhook gets the notice as JSON. With a secret the request is signed as Standard Webhooks describes it, the scheme
that OpenAI uses: any of its libraries verifies it, `client.webhooks.verify_signature` of the openai package too.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from tunekeeper.errors import InvalidConfig
from tunekeeper.insight.markup import TYPES
from tunekeeper.insight.published import Published, PublishedItem

MAX_ISSUE_CHARACTERS = 60_000
"""GitHub refuses bodies over 65,536."""
MAX_CHAT_LINES = 15
TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What one report has to say, the gravest first."""

    title: str
    category: str
    day: date
    summary: str
    hits: Sequence[str]
    """Sentences on what touches the reader's own models: retirements, deployments."""
    items: Sequence[PublishedItem]
    """Breaking changes first."""
    url: str
    """Where the report can be read; empty where it is on no site."""
    permalink: str
    source: str

    @property
    def id(self) -> str:
        """The same for the same report: a receiver may drop what it has seen."""
        return f"msg_{uuid5(NAMESPACE_URL, f'tunekeeper:notice:{self.category}:{self.day}:{self.permalink}').hex}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Whom to tell."""

    apprise: Sequence[str] = ()
    """Addresses that apprise knows: `slack://…`, `mailto://…`."""
    webhooks: Sequence[str] = ()
    secret: str = ""
    """Signs the webhooks: `whsec_` and base64, or any text."""


def notice_of(report: Published, *, url: str = "", hits: Sequence[str] = ()) -> Notice:
    """The notice of a report; `hits` are what the caller knows of the reader's own models."""
    return Notice(
        title=f"{report.title} {report.day}",
        category=report.category,
        day=report.day,
        summary=report.summary,
        hits=tuple(hits),
        items=sorted(report.items, key=lambda item: TYPES.index(item.type) if item.type in TYPES else len(TYPES)),
        url=url,
        permalink=report.permalink,
        source=report.source.name if report.source else "",
    )


def send(notice: Notice, targets: Targets) -> list[str]:
    """Tell every target; return a sentence for each that could not be told."""
    key = _key(targets.secret)
    told = [_tell_apprise(address, notice) for address in targets.apprise]
    told += [_post(address, notice, key) for address in targets.webhooks]
    return [failure for failure in told if failure]


def issue_body(notice: Notice) -> str:
    """The notice as the body of a GitHub issue. Nobody is mentioned and no issue is linked by a document's words."""
    lines = [_quiet(notice.summary), ""]
    if notice.hits:
        lines += ["## What hits you", *(f"- {_quiet(hit)}" for hit in notice.hits), ""]
    for kind in dict.fromkeys(item.type for item in notice.items):
        lines += [f"## {_quiet(kind).capitalize()}", ""]
        for item in notice.items:
            if item.type == kind:
                lines.append(f"- {_link(item, notice)}: `{item.filename.replace('`', '')}` ({_quiet(item.status)})")
        lines.append("")
    lines += [f"- [ ] {task}" for task in ("Checked what it means for our models", "Done what is needed")]
    lines += ["", " · ".join(part for part in (_quiet(notice.source), notice.url, _target(notice.permalink)) if part)]
    body = "\n".join(lines) + "\n"
    if len(body) <= MAX_ISSUE_CHARACTERS:
        return body
    cut = body[:MAX_ISSUE_CHARACTERS].rsplit("\n", 1)[0]
    return f"{cut}\n\n… and more: {notice.url or _target(notice.permalink)}\n"


def payload(notice: Notice) -> dict[str, Any]:
    """The notice as a webhook gets it."""
    return {
        "id": notice.id,
        "type": "insight.report.published",
        "data": {
            "title": notice.title,
            "category": notice.category,
            "date": notice.day.isoformat(),
            "summary": notice.summary,
            "url": notice.url or None,
            "permalink": notice.permalink,
            "source": notice.source,
            "hits": list(notice.hits),
            "items": [
                {
                    "type": item.type,
                    "title": item.title,
                    "filename": item.filename,
                    "status": item.status,
                    "url": f"{notice.url}#{item.anchor}" if notice.url and item.anchor else None,
                }
                for item in notice.items
            ],
        },
    }


def signed(body: bytes, notice_id: str, key: bytes | None, *, at: datetime) -> dict[str, str]:
    """The headers of a webhook: id and time, and with a key the signature over id, time and body."""
    headers = {"webhook-id": notice_id, "webhook-timestamp": str(int(at.timestamp()))}
    if key is not None:
        content = f"{notice_id}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(key, content, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers


def _key(secret: str) -> bytes | None:
    if not secret.startswith("whsec_"):
        return secret.encode() or None
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error as error:
        raise InvalidConfig("The webhook secret begins with whsec_ but what follows is no base64.") from error


def _post(address: str, notice: Notice, key: bytes | None) -> str:
    import httpx

    body = json.dumps(payload(notice), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", **signed(body, notice.id, key, at=datetime.now(UTC))}
    try:
        transport = httpx.HTTPTransport(retries=2)
        with httpx.Client(transport=transport, timeout=TIMEOUT_S) as client:
            answer = client.post(address, content=body, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"The webhook at {_shown(address)} was not told: {type(error).__name__}."
    if answer.is_success:
        return ""
    return f"The webhook at {_shown(address)} was not told: it answered {answer.status_code}."


def _tell_apprise(address: str, notice: Notice) -> str:
    try:
        import apprise
    except ImportError:
        return f"{_shown(address)} was not told: pip install 'tunekeeper[insight]'."
    messenger = apprise.Apprise()
    if not messenger.add(address):
        return f"{_shown(address)} was not told: apprise does not understand the address."
    grave = bool(notice.hits) or any(item.type == TYPES[0] for item in notice.items)
    kind = apprise.NotifyType.WARNING if grave else apprise.NotifyType.INFO
    body = _chat_text(notice)
    if messenger.notify(title=notice.title, body=body, notify_type=kind, body_format=apprise.NotifyFormat.TEXT):
        return ""
    return f"{_shown(address)} was not told: the service did not take the message."


def _chat_text(notice: Notice) -> str:
    lines = [*notice.hits, *(f"[{item.type}] {item.title or item.filename}" for item in notice.items)]
    if len(lines) > MAX_CHAT_LINES:
        lines = [*lines[:MAX_CHAT_LINES], f"… {len(lines) - MAX_CHAT_LINES} more"]
    return "\n".join(["\n".join(lines), "", notice.summary, "", notice.url or notice.permalink]).strip()


def _shown(address: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(address)
    host = parts.hostname if parts.scheme in ("http", "https") else None
    return f"{parts.scheme}://{host or '…'}" if parts.scheme else "a target without a scheme"


def _link(item: PublishedItem, notice: Notice) -> str:
    title = re.sub(r"([\[\]])", r"\\\1", _quiet(item.title or item.filename))
    return f"[{title}]({notice.url}#{item.anchor})" if notice.url and item.anchor else title


def _target(permalink: str) -> str:
    return f"<{permalink}>" if permalink.startswith(("https://", "http://")) else _quiet(permalink)


def _quiet(text: str) -> str:
    """On one line, without HTML; @name and #1 break at a zero-width space, so that they notify and link nothing."""
    text = " ".join(text.split()).replace("<", "&lt;")
    return re.sub(r"([@#])(?=\w)", "\\1\u200b", text)
