import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from published_reports import publish, report
from tunekeeper.errors import InvalidConfig, Unavailable
from tunekeeper.insight.calendar import Retirement, Revision
from tunekeeper.insight.published import read_reports
from tunekeeper.insight.site import Site, build, languages, write


def retirement(model: str, day: date | None, **more: object) -> Retirement:
    fields = {"publisher": "Azure OpenAI", "version": "1", "purpose": "inference", "text": str(day or "TBD"), **more}
    return Retirement(model=model, day=day, **fields)  # type: ignore[arg-type]


RETIREMENTS = [
    retirement("gpt-4", date(2025, 7, 16), replacement="gpt-4.1", source="https://h.example/a/retirements.md#L3",
               history=[Revision(seen=date(2025, 6, 12), old="August 1", new="July 16", days_moved=-16)]),
    retirement("old-model", date(2024, 2, 29)),
    retirement("gpt-4o", date(2025, 7, 16), is_lower_bound=True, purpose="training"),
    retirement("undated<b>", None),
]  # fmt: skip


def built(directory: Path, **more: object) -> dict[str, str]:
    reports, warnings = read_reports(directory)
    assert warnings == []
    files = build(Site(reports=reports, retirements=RETIREMENTS, **more))  # type: ignore[arg-type]
    return {path: content.decode() for path, content in files}


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    directory = tmp_path / "reports"
    kinds = (("2025-06-12", "openai"), ("2025-06-12", "日本語"), ("2025-06-11", "openai"), ("2024-02-29", "misc"))
    for day, category in kinds:
        publish(directory, day=day, category=category)
    return directory


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        self.links += [str(values[name]) for name in ("href", "src", "action") if name in values]
        self.ids += [str(values["id"])] if "id" in values else []


def pages(files: dict[str, str]) -> Iterator[tuple[str, Page]]:
    return ((path, Page(text)) for path, text in files.items() if path.endswith(".html"))


def test_each_link_inside_the_site_leads_to_a_file_and_to_an_id_in_it(reports: Path) -> None:
    files = built(reports)
    ids = {path: page.ids for path, page in pages(files)}
    checked = 0
    for path, page in pages(files):
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            target, _, anchor = link.partition("#")
            place = os.path.normpath(os.path.join(os.path.dirname(path), unquote(target))) if target else path
            assert place in files, f"{path} links to {link}"
            assert not anchor or anchor in ids[place], f"{path} links to {link}"
            checked += 1
    assert checked > 100


def test_an_id_stands_once_on_a_page(reports: Path) -> None:
    for path, page in pages(built(reports)):
        assert len(page.ids) == len(set(page.ids)), path


def test_a_page_loads_nothing_from_elsewhere_and_runs_only_our_scripts(reports: Path) -> None:
    files = built(reports, base_url="https://docs.example/sub/")
    for path, page in pages(files):
        for tag, values in page.elements:
            assert tag not in ("img", "iframe", "object", "embed", "style", "base", "form-data")
            assert not any(name.startswith("on") or name == "style" for name in values)
            if tag == "script" or (tag == "link" and values.get("rel") == "stylesheet"):
                address = str(values.get("src") or values.get("href"))
                assert re.fullmatch(r"(\.\./)*(assets|search)/[a-z]+\.(js|css)", address), path
        assert "default-src 'none'; style-src 'self'; script-src 'self'" in files[path]
    assert "url(" not in files["assets/site.css"]
    assert "http" not in files["assets/site.css"] + files["assets/site.js"] + files["assets/search.js"]


def test_a_hostile_report_stays_text(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script></details><img src=x onerror=alert(2)>[x](javascript:alert(3))'
    text = report(summary="x", explanation=evil).replace("summary: x", f"summary: '{evil}'")
    publish(tmp_path, text.replace("title: Diff", f"title: '{evil}' #"))
    for path, page in pages(built(tmp_path, title=evil)):
        scripts = [values.get("src") for tag, values in page.elements if tag == "script"]
        assert all(scripts), path
        assert not [tag for tag, values in page.elements if tag == "img" or "onerror" in values], path
        assert not [link for link in page.links if link.lower().startswith("javascript:")], path


def test_the_same_reports_give_the_same_bytes(reports: Path) -> None:
    assert built(reports) == built(reports)


def test_pages_speak_the_language_of_most_reports_and_dates_take_its_form(reports: Path) -> None:
    files = built(reports)
    assert '<html lang="ja">' in files["index.html"]
    assert "2025年6月12日木曜日" in files["index.html"]
    english = built(reports, language="en")
    assert '<html lang="en">' in english["index.html"]
    assert "Thursday, June 12, 2025" in english["index.html"]
    assert '<article class="report" lang="ja">' in english["2025/06/diff-insight-report-openai-2025-06-12.html"]


def test_every_language_has_the_same_words() -> None:
    import yaml

    from tunekeeper.insight.site import PAGES

    words = {name: yaml.safe_load((PAGES / f"{name}.yaml").read_text("utf-8")) for name in languages()}
    assert {"en", "ja"} <= set(words)
    assert all(
        set(own) == set(words["en"]) and set(own["types"]) == set(words["en"]["types"]) for own in words.values()
    )


def test_source_and_licence_stand_on_each_report_and_a_given_licence_wins(reports: Path) -> None:
    path = "2025/06/diff-insight-report-openai-2025-06-12.html"
    credit = 'href="https://github.com/example/docs" target="_blank" rel="noopener noreferrer">example/docs</a> · '
    assert f"{credit}ライセンス: CC BY 4.0" in built(reports)[path]
    given = built(reports, licenses={"example/docs": "MIT & more"})
    assert f"{credit}ライセンス: MIT &amp; more" in given[path]
    assert f"{credit}ライセンス: MIT &amp; more" in given["index.html"]


def test_the_calendar_shows_days_to_come_before_those_past_and_says_what_moved(reports: Path) -> None:
    page = built(reports, language="en")["retirements.html"]
    coming, _, past = page.partition('<details class="past">')
    assert "July 2025" in coming
    assert '<b class="earlier">16 days earlier</b>' in coming
    assert "no earlier than" in coming
    assert '<a href="#d-2025-07-16" tabindex="-1">16</a>' in coming
    assert "undated&lt;b&gt;" in coming
    assert "February 2024" in past
    assert 'id="d-2024-02-29"' in past


def test_a_site_without_reports_is_whole(tmp_path: Path) -> None:
    files = {path: content.decode() for path, content in build(Site(reports=[]))}
    assert "There are no reports yet." in files["index.html"]
    assert "No retirement dates are known." in files["retirements.html"]


@pytest.mark.parametrize("address", ["docs.example", "ftp://docs.example", "https://", "javascript:alert(1)"])
def test_a_base_url_must_be_an_address(address: str) -> None:
    with pytest.raises(InvalidConfig, match="no address of a site"):
        Site(reports=[], base_url=address)


def test_a_language_without_words_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="It speaks: en, ja"):
        Site(reports=[], language="xx")


def test_stale_pages_go_when_a_site_is_made_again(reports: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    write(build(Site(reports=read_reports(reports)[0])), out)
    assert (out / "2024/02/diff-insight-report-misc-2024-02-29.html").exists()
    shutil.rmtree(reports / "2024")
    write(build(Site(reports=read_reports(reports)[0])), out)
    assert not (out / "2024").exists()
    assert [path.name for path in tmp_path.iterdir() if path != reports] == ["site"]


def test_a_run_that_fails_half_way_leaves_the_old_site(tmp_path: Path) -> None:
    out = tmp_path / "site"
    write([("index.html", b"old"), (".tunekeeper-site", b"")], out)

    def failing() -> Iterator[tuple[str, bytes]]:
        yield "index.html", b"new"
        raise OSError(28, "No space left on device")

    with pytest.raises(Unavailable, match=r"No space left on device\. The old one is as it was"):
        write(failing(), out)
    assert (out / "index.html").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_directory_that_is_no_site_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "home"
    out.mkdir()
    (out / "letter.txt").write_text("keep me")
    with pytest.raises(InvalidConfig, match="no site of ours"):
        write([("index.html", b"")], out)
    assert (out / "letter.txt").read_text() == "keep me"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".site.new" / "2020").mkdir(parents=True)
    (tmp_path / ".site.old").mkdir()
    write([("index.html", b"x"), (".tunekeeper-site", b"")], tmp_path / "site")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site"]
    assert sorted(path.name for path in (tmp_path / "site").iterdir()) == [".tunekeeper-site", "index.html"]


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(("question", "hits"), [("提供終了日", 2), ("GPT-4.1-mini", 1)])
def test_the_search_answers_from_a_page_on_disk(tmp_path: Path, question: str, hits: int) -> None:
    publish(tmp_path / "reports")
    out = tmp_path / "site"
    write(build(Site(reports=read_reports(tmp_path / "reports")[0])), out)
    assert BROWSER
    dom = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom",
         "--virtual-time-budget=5000", f"{(out / 'search.html').as_uri()}?q={question}"],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert f'data-answered="{question}"' in dom
    found = dom.partition('id="search-hits"')[2].partition("</ol>")[0]
    assert found.count("<li>") == hits
    assert found.lower().count(f"<mark>{question.lower()}</mark>") >= hits
