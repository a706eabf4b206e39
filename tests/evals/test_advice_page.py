"""The advice as Markdown and HTML: everything is there, and strangers' text stays text."""

import re

from advised import measures, series

from tunekeeper.evals.advice import advise
from tunekeeper.evals.advice_page import cells, headings, to_html, to_markdown
from tunekeeper.evals.curve import Point, learning_curve


def advice(**more):
    curve = learning_curve(
        [Point(n=n, scores=[1.0] * r + [0.0] * (99 - r)) for n, r in ((75, 20), (150, 50), (300, 80))]
    )
    given = {"base": series("base", 10), "tuned": series("tuned <b>", 80, tokens=42, cost=0.001), "curve": curve}
    return advise(measures(**{**given, **more}), cuts=["one thing <i>"], grader="exact: they are short")


def test_a_row_has_a_cell_for_each_heading():
    found = advice()
    assert len(headings(found)) == len(cells(found.rows[0], found)) == 9
    assert cells(found.rows[1], found)[1:6] == ("80.0 %", "71.1 to 86.7 %", "100", "0", "42")
    assert len(headings(advice(tuned=None))) == 8  # no cost is known


def test_the_markdown_has_verdict_table_curve_and_comparison():
    text = to_markdown(advice(), title="Should it?")
    assert text.startswith("# Should it?\n\n**tune: better by ")
    assert "| 75 | 0.202 |" in text
    assert re.search(r"\| 600 \| 0\.\d+ foretold \(", text)
    assert "## Item by item" in text
    assert r"| tuned \<b\> | 80.0 % |" in text


def test_the_page_fetches_nothing_and_draws_the_curve():
    page = to_html(advice(), title="<script>alert(1)</script>")
    assert "<script" not in page
    assert "tuned &lt;b&gt;" in page
    assert "one thing &lt;i&gt;" in page
    assert page.count("<circle") == 5
    assert not re.search(r'(?:src|href)="(?!comparison\.html)', page)


def test_without_measures_there_is_a_page_all_the_same():
    found = advise(measures())
    assert "cannot tell" in to_html(found, title="t")
    assert "cannot tell" in to_markdown(found, title="t")
    assert "<svg" not in to_html(found, title="t")
