from pathlib import Path
from xml.etree import ElementTree

from published_reports import publish, report
from tunekeeper.insight.feeds import MAX_ENTRIES, to_atom
from tunekeeper.insight.published import read_reports

ATOM = "{http://www.w3.org/2005/Atom}"


def feed(directory: Path, path: str = "feeds/openai.xml", base_url: str = "") -> ElementTree.Element:
    reports, _ = read_reports(directory)
    return ElementTree.fromstring(to_atom(reports, title="News", name="openai", path=path, base_url=base_url))


def texts(root: ElementTree.Element, name: str) -> list[str | None]:
    return [element.text for element in root.iter(ATOM + name)]


def links(root: ElementTree.Element) -> list[str | None]:
    return [element.get("href") for element in root.iter(f"{ATOM}link")]


def test_a_feed_has_each_report_once_the_newest_first(tmp_path: Path) -> None:
    for day in ("2025-06-10", "2025-06-12", "2025-06-11"):
        publish(tmp_path, day=day)
    root = feed(tmp_path)
    entries = root.findall(f"{ATOM}entry")
    updated = [f"2025-06-{day}T00:00:00+00:00" for day in (12, 11, 10)]
    assert [entry.findtext(f"{ATOM}updated") for entry in entries] == updated
    assert root.findtext(f"{ATOM}updated") == updated[0]
    ids = texts(root, "id")
    assert len(set(ids)) == len(ids) == 4
    assert all(str(identifier).startswith("urn:uuid:") for identifier in ids)
    assert all(element.find(f"{ATOM}author") is not None for element in [root])


def test_links_are_relative_without_a_base_url_and_ids_stay_with_one(tmp_path: Path) -> None:
    publish(tmp_path, day="2025-06-12")
    page = "2025/06/diff-insight-report-openai-2025-06-12.html"
    near, far = feed(tmp_path), feed(tmp_path, base_url="https://docs.example/sub")
    assert links(near) == ["../index.html", "../feeds/openai.xml", f"../{page}"]
    assert links(far) == [f"https://docs.example/sub/{p}" for p in ("index.html", "feeds/openai.xml", page)]
    assert texts(near, "id") == texts(far, "id")


def test_what_a_document_says_is_text_in_the_entry(tmp_path: Path) -> None:
    publish(tmp_path, report(summary="<script>alert(1)</script> & more"))
    (content,) = texts(feed(tmp_path), "content")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in str(content)
    assert "<script" not in str(content)
    assert '<div lang="ja">' in str(content)


def test_a_feed_ends_after_the_newest_entries(tmp_path: Path) -> None:
    for number in range(MAX_ENTRIES + 2):
        publish(tmp_path, day=f"2025-{1 + number // 28:02d}-{1 + number % 28:02d}")
    assert len(feed(tmp_path).findall(f"{ATOM}entry")) == MAX_ENTRIES


def test_a_feed_without_reports_is_still_a_feed(tmp_path: Path) -> None:
    root = feed(tmp_path)
    assert root.findtext(f"{ATOM}updated") == "1970-01-01T00:00:00+00:00"
