from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tunekeeper.insight.quoting import code, escape, fence, plain, prose

NASTY = st.text(st.sampled_from("ab `*_[]()<>#|&!~${}\\\n\r\"'-+.1:/\u2028\x00é漢"), max_size=40)


def inline(markdown: str) -> list[tuple[str, str]]:
    return [(token.type, token.content) for token in MarkdownIt("commonmark").parseInline(markdown)[0].children or ()]


def shown(text: str) -> str:
    return " ".join(text.replace("\x00", "\ufffd").split())


@settings(deadline=None)
@given(NASTY)
def test_escaped_text_is_shown_as_it_is_and_is_nothing_else(text: str) -> None:
    # A letter on both sides: blanks at the ends of a line belong to no text.
    tokens = inline(f"x{escape(f'a{text}b')}x")
    assert {kind for kind, _ in tokens} <= {"text", "text_special"}
    assert "".join(content for _, content in tokens) == f"x{shown(f'a{text}b')}x"


@settings(deadline=None)
@given(NASTY)
def test_code_is_one_span_with_the_text_inside(text: str) -> None:
    wanted = shown(f"a{text}b")
    assert inline(code(wanted)) == [("code_inline", wanted)]


def test_code_that_begins_or_ends_with_backticks_is_still_one_span() -> None:
    assert inline(code("``a`")) == [("code_inline", "``a`")]


@settings(deadline=None)
@given(NASTY)
def test_no_text_closes_its_fence(text: str) -> None:
    tokens = MarkdownIt("commonmark").parse(f"{fence(text, 'diff')}\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]
    body = text.replace("\r\n", "\n").replace("\r", "\u240d").replace("\x00", "\ufffd")
    assert tokens[0].content.removesuffix("\n") == body.removesuffix("\n")


def test_plain_is_what_a_reader_sees() -> None:
    assert plain("**a** `b_c`<br>[d](e.md) \\| ~~x~~") == "a b_c d | ~~x~~"


def test_prose_keeps_code_and_shows_everything_else() -> None:
    assert prose("Set `a_b` to <b>.") == "Set `a_b` to \\<b\\>."


@settings(deadline=None)
@given(NASTY)
def test_prose_never_becomes_more_than_text_and_code(text: str) -> None:
    assert {kind for kind, _ in inline(f"x{prose(text)}")} <= {"text", "text_special", "code_inline"}
