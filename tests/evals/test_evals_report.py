import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from tunekeeper.evals import CriterionResult, Outcome, Series, compare, to_html, to_json, to_markdown

HOSTILE = [
    "a | b | c\n| d |\n\n# heading\n- list\n```\nfence",
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "[link](https://evil.example) ![i](https://evil.example/x.png) https://evil.example **bold** _em_ `code`",
    "&lt;b&gt; \\| \\\\| $x$ {{ 7 * 7 }} {% raw %}",
    "\x00\x1b[31m\u202eabc\ud800",
    "長い" * 5000,
    "",
]


@pytest.fixture(scope="module")
def comparison():
    def run(name: str, shift: int) -> Series:
        outcomes = []
        for n in range(60):
            text = HOSTILE[n % len(HOSTILE)]
            outcomes.append(
                Outcome(
                    key=f"{n}|<b>",
                    passed=None if n == 50 + shift else (n * 7 + shift) % 3 > 0,
                    criteria={"judge | <i>": CriterionResult(score=(n * (shift + 3)) % 11 / 10, passed=True)},
                    slices={"kind | <u>": HOSTILE[n % 3]},
                    prompt_tokens=1500 - shift * 100 + n,
                    cost=0.001,
                    seconds=0.5 + n / 100,
                    text=text,
                    item={"messages": [{"role": "user", "content": text}]} if n % 2 else {"text": text},
                    error="<script>|\n" if n == 50 + shift else "",
                )
            )
        return Series(name=name, model="m|<script>", outcomes=outcomes)

    return compare([run("base", 0), run("tuned <script>|x", 1), run("teacher", 2)])


def test_the_json_is_json_and_whole(comparison) -> None:
    data = json.loads(json.dumps(to_json(comparison), allow_nan=False))
    assert data["object"] == "eval.comparison"
    pair = data["pairs"][0]
    assert pair["verdict"]["text"] == comparison.pairs[0].verdict.text
    assert len(pair["flips"]) == len(comparison.pairs[0].flips)
    assert any(flip["after"]["text"] == HOSTILE[5] for flip in pair["flips"])
    assert {"value", "low", "high"} == set(data["series"][0]["passed"])
    # The cost is the same for every item, so how it spreads is not known.
    assert next(one for one in pair["usage"] if one["name"].startswith("cost"))["difference"]["low"] is None


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.unclosed: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "line", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if self.open.pop() != tag:
            self.unclosed.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)


def test_the_page_fetches_nothing_and_runs_nothing(comparison) -> None:
    page = to_html(comparison, title="<script>title</script>")
    page.encode("utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "i", "u", "iframe", "a"} & set(tags.tags)
    assert (tags.addresses, tags.handlers, tags.unclosed, tags.open) == ([], [], [], [])
    assert "svg" in tags.tags
    assert "{{ 7 * 7 }}" in page
    assert "characters more)" in page
    assert not re.search("[\x00\u202e]", page)


def test_the_page_says_the_verdicts_and_shows_the_flips_side_by_side(comparison) -> None:
    page = to_html(comparison)
    for pair in comparison.pairs:
        assert pair.verdict.text in page
        assert f"{len([flip for flip in pair.flips if flip.won])} items won" in page
    assert "1 item left out" not in page
    assert "2 items left out" in page


def test_the_marks_of_a_plot_stand_where_the_figures_are() -> None:
    passes = [[n < 20 for n in range(40)], [n < 30 for n in range(40)]]
    runs = [
        Series(name=name, model="m", outcomes=[Outcome(key=str(n), passed=p) for n, p in enumerate(one)])
        for name, one in zip(("base", "tuned"), passes, strict=True)
    ]
    page = to_html(compare(runs))
    assert re.findall(r'<circle cx="([\d.]+)%"', page)[:2] == ["50.00", "75.00"]  # 20 and 30 of 40
    text = to_markdown(compare(runs))
    assert re.search(r"^base +·+─+●─+·+  50\.0 %$", text, re.MULTILINE)


def test_the_markdown_keeps_its_tables_whatever_stands_in_the_answers(comparison) -> None:
    text = to_markdown(comparison, title="a | <b>\n# b")
    text.encode("utf-8")
    tokens = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table").parse(text)
    inline = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in tokens} & {"html_block"} == set()
    assert {child.type for child in inline} <= {"text", "text_special", "strong_open", "strong_close", "softbreak"}
    width, rows = 0, 0
    for token in tokens:
        if token.type in ("tr_open", "table_open"):
            width = 0
            rows += token.type == "tr_open"
        width += token.type in ("th_open", "td_open")
    flips = sum(min(8, sum(f.won is won for f in pair.flips)) for pair in comparison.pairs for won in (True, False))
    assert rows >= flips
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(columns) == 1, block


def test_the_markdown_has_one_heading_for_each_part(comparison) -> None:
    headings = re.findall(r"^#+ .*", to_markdown(comparison, title="Weather"), re.MULTILINE)
    assert headings[:3] == ["# Weather", "## Series", r"## tuned \<script\>\|x against base"]


def test_a_series_of_errors_alone_still_has_a_page() -> None:
    failed = Series(name="tuned", model="t", outcomes=[Outcome(key="1", passed=None, error="gone")])
    fine = Series(name="base", model="b", outcomes=[Outcome(key="1", passed=True)])
    comparison = compare([fine, failed])
    assert "no item has it on both sides" in to_html(comparison)
    assert "error in tuned: gone" in to_markdown(comparison)
    json.dumps(to_json(comparison), allow_nan=False)
