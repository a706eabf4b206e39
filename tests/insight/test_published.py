from datetime import date
from pathlib import Path

import pytest

from published_reports import publish, report
from tunekeeper.errors import InvalidData, NotFound
from tunekeeper.insight.published import Source, language_of, read_report, read_reports


def test_a_report_is_read_back_with_all_that_it_says(tmp_path: Path) -> None:
    read = read_report(publish(tmp_path))
    assert (read.day, read.category, read.language, read.license) == (date(2025, 6, 12), "openai", "ja", "CC BY 4.0")
    assert read.source == Source(name="example/docs", url="https://github.com/example/docs")
    assert read.path == "2025/06/diff-insight-report-openai-2025-06-12.html"
    assert read.highlights["Breaking changes"] == ["gpt-4 の提供終了日が早まりました。"]
    assert read.insights == "モデルの提供終了日が早まりました。一覧を参照。"
    tools, retirements = read.items
    assert (tools.anchor, tools.filename, tools.type) == ("item-71d8ac", "docs/tools.md", "minor update")
    assert (tools.title, tools.status) == ("道具の説明の更新", "modified")
    assert tools.explanation == "呼び出し方の説明が変わりました。"
    assert tools.identifiers == ("old-flag", "new-flag")
    assert retirements.type == "breaking change"
    assert retirements.identifiers == ("gpt-4", "gpt-4.1-mini")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("notes.md", report().encode(), "a report is named diff-insight-report-CATEGORY-YYYY-MM-DD.md"),
        ("diff-insight-report-openai-2025-02-30.md", report().encode(), "a report is named"),
        ("diff-insight-report-..-2025-06-12.md", report().encode(), "a report is named"),
        ("diff-insight-report-openai-2025-06-12.md", "# 要約".encode("utf-16"), "byte 0 is not UTF-8"),
        ("diff-insight-report-openai-2025-06-12.md", b"# Highlights\n", "no front matter"),
        ("diff-insight-report-openai-2025-06-12.md", b"---\ndate: '2025\n---\n", "front matter is no YAML"),
        ("diff-insight-report-openai-2025-06-12.md", b"---\nsummary: a: b\n---\n", "line 2 of its front matter"),
        ("diff-insight-report-openai-2025-06-12.md", b"---\n- date\n---\n", "is not a list of `name: text`"),
        ("diff-insight-report-openai-2025-06-12.md", b"---\ntitle: x\n---\n", "front matter says date (none)"),
        ("diff-insight-report-openai-2025-06-13.md", report().encode(), "name says 2025-06-13, its front matter"),
    ],
)
def test_a_file_that_is_no_report_is_named_with_what_is_wrong_and_the_others_are_read(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    good = publish(tmp_path, day="2025-01-02")
    bad = tmp_path / name
    bad.write_bytes(content)
    reports, warnings = read_reports(tmp_path)
    assert [found.stem for found in reports] == [good.stem]
    assert len(warnings) == 1
    assert str(bad) in warnings[0]
    assert said in warnings[0]
    with pytest.raises(InvalidData, match="left out"):
        read_report(bad)


def test_the_second_report_of_a_day_and_category_is_left_out_and_both_are_named(tmp_path: Path) -> None:
    first = publish(tmp_path)
    second = tmp_path / "2025" / "07" / first.name
    second.parent.mkdir()
    second.write_text(report(), "utf-8")
    reports, warnings = read_reports(tmp_path)
    assert len(reports) == 1
    assert warnings == [
        f"{second} is left out: {first} is already the report on openai of 2025-06-12. Delete one of them."
    ]


def test_reports_come_oldest_first(tmp_path: Path) -> None:
    for day, category in (("2025-06-12", "b"), ("2024-12-31", "z"), ("2025-06-12", "a")):
        publish(tmp_path, day=day, category=category)
    reports, _ = read_reports(tmp_path)
    assert [(str(found.day), found.category) for found in reports] == [
        ("2024-12-31", "z"), ("2025-06-12", "a"), ("2025-06-12", "b"),
    ]  # fmt: skip


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no directory"):
        read_reports(tmp_path / "missing")


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = publish(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + report().replace("\n", "\r\n").encode())
    assert len(read_report(path).items) == 2


def test_a_report_without_sections_has_none(tmp_path: Path) -> None:
    read = read_report(publish(tmp_path, "---\ndate: 2025-06-12\n---\nSee the diff.\n"))
    assert (read.items, read.highlights, read.source, read.license) == ([], {}, None, "")


def test_a_path_of_a_local_repository_is_a_source_and_no_link(tmp_path: Path) -> None:
    text = report().replace("permalink: https://github.com/example/docs/compare/example:776cc95...example:da65020",
                            "permalink: /srv/docs a..b")  # fmt: skip
    read = read_report(publish(tmp_path, text))
    assert (read.link, read.source) == ("", Source(name="/srv/docs a..b"))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("モデルの提供終了日が早まりました。", "ja"),
        ("`gpt-4o-mini` と `computer-use-preview` の期日が変わりました。", "ja"),
        ("The page 日本語 was renamed, and three of its sections moved to another page.", "en"),
        ("模型的退役日期已更改。", "zh"),
        ("모델의 지원 종료 날짜가 변경되었습니다.", "ko"),
        ("", "en"),
    ],
)
def test_the_language_is_that_of_most_letters(text: str, language: str) -> None:
    assert language_of(text) == language
