"""`tunekeeper report` and `tunekeeper watch`: what changed in a repository's documents, as reports."""

import gc
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from tunekeeper.cli.options import Options, options_of
from tunekeeper.errors import InvalidRequest, TunekeeperError, Unauthenticated, UpstreamFailed

if TYPE_CHECKING:
    from tunekeeper.insight.categories import Categories
    from tunekeeper.insight.changes import ChangeSet
    from tunekeeper.insight.classify import Event
    from tunekeeper.insight.daily import Outcome
    from tunekeeper.insight.notices import Targets

Heard = dict[tuple[str, str], "Sequence[Event]"]
"""The retirements in each report that was composed, by category and day."""

Repo = Annotated[str, typer.Option(metavar="PATH|URL", help="Git repository; a URL is cloned into the home directory.")]
Language = Annotated[str, typer.Option(help="Language of the report: ja, en.")]
OneCategory = Annotated[
    str | None,
    typer.Option(help="Only this category; without --categories, the name for everything."),
]
CategoriesFile = Annotated[
    Path | None,
    typer.Option("--categories", metavar="FILE.yaml", exists=True, dir_okay=False, help="Categories by path patterns."),
]
Branch = Annotated[str | None, typer.Option(help="Branch to read.", show_default="the one that HEAD is on")]
Since = Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="First day.")]
License = Annotated[
    str | None, typer.Option(help="Licence of the documents.", show_default="that of the repository's LICENSE")
]
Model = Annotated[str | None, typer.Option(help="Let this model write the prose; what it claims is checked.")]
Notify = Annotated[
    list[str] | None,
    typer.Option(metavar="URL", help="Tell this address of apprise of each report: slack://…; may be given again."),
]
Webhook = Annotated[
    list[str] | None, typer.Option(metavar="URL", help="Post each report's news here as JSON; may be given again.")
]


def report(
    context: typer.Context,
    range_: Annotated[str | None, typer.Argument(metavar="[BASE..HEAD]", help="Two commits, tags or branches.")] = None,
    repo: Repo = ".",
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json|URL",
            help="An answer of GitHub's compare, or the address of a comparison to ask GitHub for, with the token in "
            "GITHUB_TOKEN.",
        ),
    ] = None,
    since: Since = None,
    until: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="Last day.", show_default="today")] = None,
    language: Language = "en",
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Directory; the report goes to OUT/YYYY/MM.", show_default="the screen"),
    ] = None,
    category: OneCategory = None,
    categories: CategoriesFile = None,
    branch: Branch = None,
    license: License = None,
    model: Model = None,
) -> None:
    """Report what changed in documents.

    Between two commits, in a range of days, or in an answer of GitHub's compare. Without any of them: each day since
    the last such report. What the source could not give is said in the report.
    """
    if sum(given is not None for given in (range_, since or until, compare)) > 1:
        raise typer.BadParameter("give one of BASE..HEAD, --since/--until and --compare.")
    if compare is not None and (repo != "." or branch is not None):
        raise typer.BadParameter("--compare has its own repository; leave --repo and --branch out.")
    options = options_of(context)
    if range_ is None and since is None and until is None and compare is None:
        if out is None:
            raise typer.BadParameter("reports since last time are files: give --out, or a range.")
        with _composer(options, language, model) as compose:
            outcome = _caught_up(options, repo, compose, out, category, categories, branch, None, license)
        _show(options, outcome)
        if outcome.lacks:
            raise typer.Exit(1)
        return
    with _composer(options, language, model) as compose:
        changes, failed = _changes(options, repo, compare, range_, (since, until), branch)
        if license is not None:
            changes = replace(changes, license=license)
        chosen = _categories(categories, category or changes.category or _name_of(changes.source or changes.url))
        _one(options, changes, chosen, compose, out, category if categories else None)
    if failed is not None:
        raise failed


def watch(
    context: typer.Context,
    out: Annotated[Path, typer.Option(file_okay=False, help="Directory; reports go to OUT/YYYY/MM.")],
    repo: Repo = ".",
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Look again after this time: 30m, 1h, 1d.", show_default="once")
    ] = None,
    since: Since = None,
    language: Language = "en",
    category: OneCategory = None,
    categories: CategoriesFile = None,
    branch: Branch = None,
    license: License = None,
    model: Model = None,
    notify: Notify = None,
    webhook: Webhook = None,
    webhook_secret_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the secret that signs the webhooks.")
    ] = None,
    issue_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", dir_okay=False, help="Write the news as the body of a GitHub issue."),
    ] = None,
    site_url: Annotated[
        str, typer.Option(metavar="URL", help="Where the site of the reports is, for links in the news.")
    ] = "",
) -> None:
    """Report each day that has changed since last time, and tell of it.

    The first time it begins at --since, or with the newest day. Categories that fall silent, or whose folder moved,
    are told on the way. Who is told by --notify, --webhook and --issue-file hears first of what touches the models
    of this home directory.
    """
    options = options_of(context)
    first = _day(since, "--since")
    targets = _targets(notify, webhook, webhook_secret_env)
    pause_s = None if every is None else _seconds(every)
    while True:
        try:
            heard: Heard = {}
            with _composer(options, language, model, heard) as compose:
                outcome = _caught_up(options, repo, compose, out, category, categories, branch, first, license)
            _show(options, outcome)
            _tell(options, outcome, heard, targets, issue_file, site_url)
            if pause_s is None and outcome.lacks:
                raise typer.Exit(1)
        except TunekeeperError as error:
            if pause_s is None:
                raise
            _note(f"{datetime.now(UTC):%Y-%m-%d %H:%M} {error.message}")
        if pause_s is None:
            return
        try:
            time.sleep(pause_s)
        except KeyboardInterrupt:
            return


def _caught_up(
    options: Options,
    repo: str,
    compose: "Callable[[ChangeSet], str]",
    out: Path,
    category: str | None,
    categories: Path | None,
    branch: str | None,
    since: date | None,
    license: str | None,
) -> "Outcome":
    from tunekeeper.insight.compare import nothing
    from tunekeeper.insight.daily import Outcome, catch_up, publish_nothing
    from tunekeeper.insight.source import open_repository
    from tunekeeper.insight.state import open_state

    home = options.settings.home
    today = datetime.now(UTC).date()
    try:
        repository = open_repository(repo, home)
    except (UpstreamFailed, Unauthenticated) as error:  # never reached yet: there is no clone to go on with
        chosen = _categories(categories, category or _name_of(repo))
        only = _known(category, chosen) if categories else None
        names = [each.name for each in chosen.categories if only in (None, each.name)]
        unread = nothing(repo, error, date=today.isoformat())
        return Outcome(published=tuple(publish_nothing(unread, compose, out, names)), lacks=unread.lacks)
    branch = branch or repository.branch()
    chosen = _categories(categories, category or _name_of(repository.address))
    with open_state(home, repository.address, branch, out) as file:
        return catch_up(
            repository,
            file,
            compose if license is None else lambda changes: compose(replace(changes, license=license)),
            branch=branch,
            categories=chosen,
            out=out,
            today=today,
            since=since,
            only=_known(category, chosen) if categories else None,
        )


def _targets(notify: list[str] | None, webhook: list[str] | None, secret_env: str | None) -> "Targets":
    import os

    from tunekeeper.insight.notices import Targets

    secret = os.environ.get(secret_env, "") if secret_env else ""
    if secret_env and not secret:
        raise typer.BadParameter(f"--webhook-secret-env names {secret_env}, which is not set.")
    return Targets(apprise=tuple(notify or ()), webhooks=tuple(webhook or ()), secret=secret)


def _tell(
    options: Options, outcome: "Outcome", heard: "Heard", targets: "Targets", issue_file: Path | None, site_url: str
) -> None:
    """Tell of each report; who could not be told is said, and the reports stay."""
    if not (targets.apprise or targets.webhooks or issue_file) or not outcome.published:
        return
    from tunekeeper.insight.notices import issue_body, notice_of, send
    from tunekeeper.insight.published import read_report
    from tunekeeper.insight.state import write_atomically

    bodies = []
    for entry in outcome.published:
        try:
            report = read_report(entry.path)
            url = f"{site_url.rstrip('/')}/{quote(report.path)}" if site_url else ""
            news = notice_of(
                report, url=url, hits=_hits(options, heard.get((entry.category, entry.date), ()), report.language)
            )
            bodies.append(issue_body(news))
            for failure in send(news, targets):
                _note(failure)
        except TunekeeperError as error:
            _note(f"Nobody was told of {entry.path}: {error.message}")
    if issue_file is not None:
        try:
            write_atomically(issue_file, "\n".join(bodies))
        except TunekeeperError as error:
            _note(f"{issue_file} was not written: {error.message}")


def _hits(options: Options, events: "Sequence[Event]", language: str) -> list[str]:
    """What a report's retirements say of the models of this home directory, a sentence each."""
    from tunekeeper.cli.home import local_store
    from tunekeeper.cli.retirements import own_names
    from tunekeeper.insight import events as telling
    from tunekeeper.insight.catalogue import catalogue
    from tunekeeper.insight.quoting import plain
    from tunekeeper.lifecycle.catalog import Entry

    if not events:
        return []
    with local_store(options) as store:
        own = own_names(options, store)
    words, found = catalogue(language), []
    for group in telling.groups(events):
        entries = [Entry(model=e["model"], version=e["version"], publisher="", dates={}) for e in group]
        if names := [name for name in own if any(entry.answers_to(name) for entry in entries)]:
            found.append(
                words.say("notice_hit", sentence=plain(telling.sentence(group, words)), names=", ".join(names))
            )
    return found


def _changes(
    options: Options,
    repo: str,
    compare: str | None,
    range_: str | None,
    days: tuple[str | None, str | None],
    branch: str | None,
) -> "tuple[ChangeSet, TunekeeperError | None]":
    """The change set, and why it is empty where its source could not be read."""
    import os

    from tunekeeper.insight.compare import fetch_compare, is_compare_url, nothing, read_compare
    from tunekeeper.insight.source import open_repository

    today = datetime.now(UTC).date()
    if compare is not None and not is_compare_url(compare):
        return read_compare(Path(compare)), None
    first, last = (_day(text, name) for text, name in zip(days, ("--since", "--until"), strict=True))
    try:
        if compare is not None:
            token, api_url = os.environ.get("GITHUB_TOKEN"), os.environ.get("GITHUB_API_URL")
            return fetch_compare(compare, token=token or None, api_url=api_url), None
        repository = open_repository(repo, options.settings.home)
    except InvalidRequest:
        raise
    except TunekeeperError as error:
        if compare is None and not isinstance(error, UpstreamFailed | Unauthenticated):
            raise
        return nothing(compare or repo, error, date=today.isoformat()), error
    if range_ is not None:
        return repository.changes(repository.span(range_)), None
    span = repository.between(first or date.min, last or today, branch=branch or repository.branch())
    return repository.changes(span), None


def _one(
    options: Options,
    changes: "ChangeSet",
    categories: "Categories",
    compose: "Callable[[ChangeSet], str]",
    out: Path | None,
    only: str | None,
) -> None:
    """Write or print the reports of one change set."""
    from tunekeeper.insight.categories import moved_within
    from tunekeeper.insight.daily import Outcome, publish, sorted_into

    alarms = moved_within(changes, categories)
    parts, unmatched = sorted_into(changes, categories, alarms)
    if not changes.files:  # said all the same
        name = only or categories.categories[0].name
        parts = {name: replace(changes, category=name)}
    if only is not None:
        parts = {name: part for name, part in parts.items() if name == _known(only, categories)}
    if out is None:
        texts = {name: compose(part) for name, part in parts.items()}
        if not options.as_json:
            print("\n".join(texts.values()), end="")
            _warn(Outcome(unmatched=unmatched, alarms=tuple(alarms), lacks=changes.lacks))
            return
        outcome = Outcome(unmatched=unmatched, alarms=tuple(alarms), lacks=changes.lacks)
        _show(options, outcome, markdown=texts)
        return
    published = publish(parts, compose, out)
    _show(
        options,
        Outcome(published=tuple(published), unmatched=unmatched, alarms=tuple(alarms), lacks=changes.lacks),
    )


@contextmanager
def _composer(
    options: Options, language: str, model: str | None, heard: Heard | None = None
) -> "Iterator[Callable[[ChangeSet], str]]":
    """What writes a change set up, and notes its retirements; with a model its server runs while it is needed."""
    from tunekeeper.insight.catalogue import catalogue
    from tunekeeper.insight.facts import facts_of
    from tunekeeper.insight.render import render
    from tunekeeper.insight.writer import write_report

    # Facts live until the report is written: looking for garbage among them takes a quarter of the time.
    gc.set_threshold(100_000, 20, 50)
    catalogue(language)  # an unknown language is refused before anything is fetched

    def compose(changes: "ChangeSet", **prose: Any) -> str:
        facts = facts_of(changes)
        if heard is not None:
            retirements = [fact for found in facts.values() for fact in found if fact.kind == "retirement"]
            heard[(changes.category, changes.date)] = [fact.data for fact in retirements]
            _keep_dates(options, changes, {fact.filename for fact in retirements})
        return render(write_report(changes, facts, language=language, **prose))

    if model is None:
        yield compose
        return
    from tunekeeper.cli.client import connect
    from tunekeeper.insight.model import ChatModel

    with connect(options) as client:
        writer = ChatModel(client.base_url, model, api_key=options.api_key or "")
        cache = options.settings.home / "insight" / "answers"
        yield partial(compose, model=writer, cache=cache)


def _keep_dates(options: Options, changes: "ChangeSet", filenames: set[str]) -> None:
    """What pages whose retirements changed say now, into the catalog; a statement that is there is not added again."""
    from tunekeeper.cli.home import local_store
    from tunekeeper.lifecycle.sources import read_claims

    pages = [file for file in changes.files if file.filename in filenames and file.new_text]
    if not pages:
        return
    said_at = int(datetime.fromisoformat(changes.date).replace(tzinfo=UTC).timestamp())
    with local_store(options) as store:
        for page in pages:
            text, name = page.new_text or "", page.filename
            store.add_claims(read_claims(text, filename=name, source=name, catalog=store.catalog(), said_at=said_at))


def _categories(file: Path | None, name: str) -> "Categories":
    from tunekeeper.insight.categories import load_categories
    from tunekeeper.insight.daily import one_category

    return one_category(name) if file is None else load_categories(file)


def _known(name: str | None, categories: "Categories") -> str | None:
    names = [*(category.name for category in categories.categories), *filter(None, [categories.rest])]
    if name is not None and name not in names:
        raise InvalidRequest(f"There is no category {name!r}; there are {', '.join(names)}.", param="category")
    return name


def _name_of(source: str) -> str:
    """A name for everything that changes in a repository."""
    last = source.rstrip("/").rpartition("/")[2].split(" ")[0].removesuffix(".git")
    return re.sub(r"[^\w.-]+", "-", last).strip("-._") or "all"


def _day(text: str | None, option: str) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option} is {text!r}; give a day like 2025-06-12.") from error


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)\s*([smhd])", text.strip())
    if match is None or int(match[1]) == 0:
        raise typer.BadParameter(f"--every is {text!r}; give a time like 30m, 1h or 1d.")
    return int(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _show(options: Options, outcome: "Outcome", **more: Any) -> None:
    from tunekeeper.cli.output import show

    answer = {
        "reports": [
            {
                "category": entry.category,
                "date": entry.date,
                "path": str(entry.path),
                "files": entry.n_files,
                "update": entry.is_update,
            }
            for entry in outcome.published
        ],
        "unmatched": list(outcome.unmatched),
        "alarms": [
            {
                "category": alarm.category,
                "kind": alarm.kind,
                "message": alarm.message,
                "proposed": list(alarm.proposed),
            }
            for alarm in outcome.alarms
        ],
        "lacks": list(outcome.lacks),
        **more,
    }
    written = [f"{entry.path}: {entry.n_files:,} files" for entry in outcome.published]
    show(options, answer, lambda: "\n".join(written) or "Nothing new.")
    if not options.as_json:
        _warn(outcome)


def _warn(outcome: "Outcome") -> None:
    from tunekeeper.insight.categories import folders

    for lack in outcome.lacks:
        _note(f"Lacking: {lack}")
    for alarm in outcome.alarms:
        _note(f"Alarm: {alarm.message}")
    if outcome.unmatched:
        _note(f"In no category: {folders(outcome.unmatched)}")


def _note(text: str) -> None:
    from tunekeeper.cli.output import note

    note(text)
