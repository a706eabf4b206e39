"""The three forms of a comparison: everything, readable, and never what strangers' text would make of it."""

import json
import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from tunekeeper.evals import Outcome, Series, compare, to_html, to_json, to_markdown

HOSTILE = "<script>alert(1)</script><i> | a\n\n# heading\n```\n[x](javascript:alert(1)) \u202etxt \x00 " + "long " * 900


@pytest.fixture(scope="module")
def comparison():
    def side(name: str, right, tokens: int) -> Series:
        return Series(
            name=name,
            model=f"ft:{name}",
            outcomes=[
                Outcome(
                    key=str(n),
                    passed=None if n == 59 else right(n),
                    slices={"language": ("en", "ja|<i>")[n % 2]},
                    prompt_tokens=tokens + n,
                    completion_tokens=9,
                    seconds=0.2 + 0.01 * n,
                    cost=0.0001 * tokens,
                    text=HOSTILE if n == 3 else f"answer {n}",
                    item={"messages": [{"role": "user", "content": HOSTILE if n == 3 else f"question {n}"}]},
                )
                for n in range(60)
            ],
        )

    return compare(
        [
            side("base", lambda n: n % 5 == 0, 100),
            side("few-shot, 3", lambda n: n % 3 == 0, 400),
            side("tuned", lambda n: n % 2 == 1 or n % 5 == 0, 100),
        ]
    )


class Reader(HTMLParser):
    """The page's tags, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_json_has_every_figure_and_no_infinity(comparison):
    found = to_json(comparison)
    assert found["object"] == "eval.comparison"
    assert json.loads(json.dumps(found, allow_nan=False))["pairs"][1]["after"] == "tuned"
    assert found["pairs"][1]["verdict"]["text"].startswith("better by")


def test_the_page_fetches_nothing_and_runs_nothing(comparison):
    reader = Reader()
    page = to_html(comparison, title="Tickets <i>")
    reader.feed(page)
    assert not [tag for tag, _ in reader.tags if tag in {"script", "iframe", "object", "embed", "i"}]
    assert not [value for _, attrs in reader.tags for value in attrs.values() if value and value.startswith("http:")]
    assert not [name for _, attrs in reader.tags for name in attrs if name.startswith("on")]
    assert not [
        1 for tag, attrs in reader.tags if tag in {"img", "link"} and not attrs.get("src", "data:").startswith("data:")
    ]
    assert "alert(1)" in reader.text


def test_the_page_says_the_verdicts_and_draws_them(comparison):
    reader = Reader()
    reader.feed(to_html(comparison))
    assert comparison.pairs[1].verdict.text in reader.text
    assert sum(tag == "svg" for tag, _ in reader.tags) >= 3
    assert ("meta", "viewport") in [(tag, attrs.get("name")) for tag, attrs in reader.tags]


def test_the_markdown_is_tables_that_hold_whatever_the_answers_say(comparison):
    text = to_markdown(comparison)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [token for token in tokens if token.type == "html_block"]
    assert not [child for token in tokens for child in token.children or () if child.type == "html_inline"]
    assert not [child for token in tokens for child in token.children or () if child.type == "link_open"]
    headings = [tokens[n + 1].content for n, token in enumerate(tokens) if token.type == "heading_open"]
    assert "heading" not in headings
    columns = [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]
    assert columns
    assert comparison.pairs[1].verdict.text in text


def test_what_is_left_out_is_listed_in_every_form(comparison):
    assert to_json(comparison)["pairs"][0]["left_out"] == [
        {"key": "59", "reason": "error in base; error in few-shot, 3"}
    ]
    for page in (to_markdown(comparison), to_html(comparison)):
        assert "1 item" in page
        assert "error in base" in page
