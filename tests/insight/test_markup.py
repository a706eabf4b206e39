from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.insight.markup import parse, to_html

ALLOWED = {
    "a", "blockquote", "br", "code", "details", "div", "em", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "s", "span", "strong", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
ATTRIBUTES = {"class", "href", "id", "rel", "start", "tabindex", "target", "title"}


class Elements(HTMLParser):
    """What a browser would make of it: elements, attributes, and whether each is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.crossed = False
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        self.crossed |= not self.open or self.open.pop() != tag

    def handle_data(self, data: str) -> None:
        self.text += data


def elements(markdown: str) -> Elements:
    return Elements(to_html(parse(markdown)))


def is_harmless(seen: Elements) -> bool:
    return (
        not seen.crossed
        and not seen.open
        and all(
            tag in ALLOWED
            and set(attributes) <= ATTRIBUTES
            and str(attributes.get("href", "#")).lower().startswith(("https://", "http://", "mailto:", "#"))
            for tag, attributes in seen.found
        )
    )


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</details></article><script src=//evil.example></script>",
    "<details>\n<summary>Diff</summary>\n\n<script>alert(1)</script>\n\n</details>",
    "<details>\n<summary><img src=x onerror=alert(1)></summary>\n\ntext\n\n</details>",
    '<details open ontoggle="alert(1)">\n<summary>Diff</summary>\n\nx\n\n</details>',
    "<details>\n<summary>Diff</summary>\n\nnever closed <iframe srcdoc=x>",
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](java\tscript:alert(1))",
    "[click](&#106;avascript:alert(1))",
    "<javascript:alert(1)>",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x)",
    "[click](//evil.example/x)",
    "[ref]\n\n[ref]: javascript:alert(1)",
    "![picture](https://evil.example/track.png)",
    '[x](https://ok.example "\\" onmouseover=alert(1) \\"")',
    '# heading{#a" onclick="alert(1)}',
    "````diff\n+```\n</code></pre><script>alert(1)</script>\n````",
    '```json\n{"modification_type": "<script>x</script>", "modification_title": "<img src=x onerror=y>"}\n```',
    "| a<script> | b |\n|---|:---:|\n| <svg onload=x> | `</td><script>` |",
    "<!-- --><script>alert(1)</script>",
    "<style>*{display:none}</style>",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("around", ["{}", "before\n\n{}\n\nafter", "- item\n\n  {}", "> {}", "| a |\n|---|\n| {} |"])
def test_nothing_in_a_document_becomes_an_active_element(text: str, around: str) -> None:
    assert is_harmless(elements(around.format(text)))


pieces = st.sampled_from(
    [*HOSTILE, "<details>", "<summary>Diff</summary>", "</details>", "````", "```", "~~~", "- ", "> ", "# h{#x}",
     "<a href='javascript:x'>", "{#item-1}", "[a](#x)", "|a|b|", "|---|---|", "    ", "\n", "\x00", "\\", "&lt;", "`"]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.one_of(pieces, st.text(max_size=12)), max_size=14).map("\n".join))
def test_no_mixture_of_hostile_pieces_gets_through(text: str) -> None:
    assert is_harmless(elements(text))


def test_a_fold_with_a_diff_stays_a_fold_with_or_without_blank_lines() -> None:
    fence = "````diff\n+<b>\n </details>\n```\n````"
    tight = elements(f"<details>\n<summary>Diff</summary>\n{fence}\n</details>\n\nafter")
    loose = elements(f"<details>\n<summary>Diff</summary>\n\n{fence}\n\n</details>\n\nafter")
    for seen in (tight, loose):
        assert [tag for tag, _ in seen.found] == ["details", "summary", "pre", "code", "span", "p"]
        assert "+<b>\n </details>\n```\n" in seen.text


def test_a_fold_that_never_ends_is_text() -> None:
    seen = elements("<details>\n<summary>Diff</summary>\n\ntext")
    assert "details" not in [tag for tag, _ in seen.found]
    assert "<details>" in seen.text


def test_lines_of_a_diff_are_marked_by_their_signs() -> None:
    html = to_html(parse("```diff\n@@ -1,2 +1,2 @@\n kept\n-old\n-older\n+new\n\\ No newline at end of file\n```"))
    assert '<span class="hunk">@@ -1,2 +1,2 @@\n</span> kept\n<span class="del">-old\n-older\n</span>' in html
    assert '<span class="add">+new\n</span><span class="note">\\ No newline' in html


def test_headings_take_the_ids_they_are_given_and_made_up_ones_go_round_them() -> None:
    seen = elements("# item-1\n\n## docs/a.md{#item-1}\n\n## Highlights\n\n## Highlights\n\n## docs/b.md {#item-1}")
    assert [(tag, attributes["id"]) for tag, attributes in seen.found] == [
        ("h2", "item-1-3"), ("h3", "item-1"), ("h3", "highlights"), ("h3", "highlights-2"), ("h3", "item-1-2"),
    ]  # fmt: skip
    assert "{#" not in seen.text


def test_links_elsewhere_open_elsewhere_and_links_to_nothing_are_text() -> None:
    seen = elements(
        '[a](https://x.example/){target="_blank"} [b](#there) [c](#missing) [d](./other.md)\n\n## There{#there}'
    )
    links = [attributes for tag, attributes in seen.found if tag == "a"]
    assert links == [
        {"href": "https://x.example/", "target": "_blank", "rel": "noopener noreferrer"},
        {"href": "#there"},
    ]
    assert seen.text.startswith("a b c d")


def test_an_image_is_its_text_and_is_not_fetched() -> None:
    seen = elements("![The dialog](https://x.example/dialog.png)")
    assert "img" not in [tag for tag, _ in seen.found]
    assert seen.text.strip() == "The dialog"


def test_the_json_of_a_summary_is_shown_as_type_and_title_and_other_json_as_it_is() -> None:
    fence = '```json\n{{"modification_type": "{}", "modification_title": "<T>"}}\n```'
    html = to_html(parse(fence.format("breaking change")), type_names={"breaking change": "破壊的変更"})
    assert html == '<p class="modification"><span class="type breaking-change">破壊的変更</span> &lt;T&gt;</p>\n'
    assert "<pre>" in to_html(parse('```json\n{"a": 1}\n```'))
    assert "<pre>" in to_html(parse("```json\n" + "[" * 100_000 + "\n```"))
