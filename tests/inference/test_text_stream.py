import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.inference.text import TextStream, possible_start


def read(chunks: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(lambda n: chunks[n], stop)
    return [*(stream.push(n) for n in range(len(chunks))), stream.finish()], stream


def test_a_character_comes_only_when_it_is_whole():
    emoji = "😀".encode()
    assert read([emoji[:1], emoji[1:3], emoji[3:] + b"!"])[0] == ["", "", "😀!", ""]


def test_bytes_that_are_no_text_become_replacement_characters():
    pieces, _ = read([b"a\xff", b"b"])
    assert "".join(pieces) == "a\ufffdb"


def test_what_may_be_a_stop_string_is_held_back():
    pieces, stream = read([b"one EN", b"D two"], ("END",))
    assert pieces == ["one ", "", ""]
    assert stream.stopped


def test_what_turned_out_to_be_none_is_given_out():
    pieces, stream = read([b"one EN", b"OUGH", b" E"], ("END",))
    assert pieces == ["one ", "ENOUGH", " ", "E"]
    assert not stream.stopped


def test_the_first_stop_string_wins():
    assert "".join(read([b"a, b. c"], (".", ","))[0]) == "a"


@pytest.mark.parametrize(("text", "n"), [("abEN", 2), ("abE", 1), ("END", 0), ("", 0), ("EEN", 2)])
def test_possible_start_is_the_longest_tail_that_the_string_begins_with(text, n):
    assert possible_start(text, "END") == n


@given(st.text(max_size=40), st.lists(st.text("ab\u00e9", min_size=1, max_size=3), max_size=3), st.integers(1, 5))
def test_pieces_add_up_to_the_text_before_the_first_stop_string(text, stop, size):
    data = text.encode("utf-8", "replace")
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    pieces, _ = read(chunks, tuple(stop))
    whole = data.decode("utf-8", "replace")
    ends = [at for s in stop if (at := whole.find(s)) >= 0]
    # A longer stop string may begin earlier than one that is complete first: the stream ends at the one met first.
    met = next((n for n in range(len(whole) + 1) if any(s in whole[:n] for s in stop)), None)
    joined = "".join(pieces)
    assert whole.startswith(joined)
    assert joined == whole if not ends else met is not None and not any(s in joined for s in stop)
