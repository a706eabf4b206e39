import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakeClock
from tunekeeper.errors import InvalidRequest, NotFound, Unavailable
from tunekeeper.storage.db import connect
from tunekeeper.storage.store import Store
from tunekeeper.types import CompletionFilter, CompletionTotals, StoredCompletion


@pytest.fixture
def store(tmp_path):
    store = Store(connect(tmp_path), FakeClock())
    yield store
    store.close()


def completion(name: str, **changes: object) -> StoredCompletion:
    made = StoredCompletion(
        id=f"chatcmpl-{name}",
        created=100,
        model="teacher-2026",
        request={"model": "teacher", "messages": [{"role": "user", "content": "hello"}]},
        response={
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]
        },
        source="own",
        metadata={"team": "a"},
        request_id="req_1",
        latency_s=0.25,
    )
    return replace(made, **changes)


def size(kept: StoredCompletion) -> int:
    """By hand: the three JSON texts, compact."""
    parts = (kept.request, kept.response, kept.metadata)
    return sum(len(json.dumps(part, separators=(",", ":"))) for part in parts)


def names(completions) -> list[str]:
    return [kept.id.removeprefix("chatcmpl-") for kept in completions]


def test_what_is_kept_comes_back_with_its_size(store):
    made = completion("a")
    store.add_completion(made)
    assert store.get_completion("chatcmpl-a") == replace(made, bytes=size(made))
    assert store.completion_totals() == CompletionTotals(completions=1, bytes=size(made))


def test_what_is_not_there_is_not_found(store):
    for ask in (store.get_completion, store.delete_completion, store.update_completion):
        with pytest.raises(NotFound, match="chatcmpl-x"):
            ask("chatcmpl-x")


def test_a_second_answer_of_the_same_id_is_kept_under_a_fresh_one(store):
    store.add_completion(completion("a"))
    store.add_completion(completion("a", source="other"))
    first, second = store.iter_completions()
    assert (first.id, first.source, second.source) == ("chatcmpl-a", "own", "other")
    assert second.id.startswith("chatcmpl-")
    assert second.id != first.id


FILTERS = [
    ({}, "abcd"),
    ({"model": "teacher-2026"}, "abd"),
    ({"model": "teacher"}, "abcd"),
    ({"model": "student"}, ""),
    ({"metadata": {"team": "a"}}, "abd"),
    ({"metadata": {"team": "a", "env": "prod"}}, "bd"),
    ({"metadata": {"team": "prod"}}, ""),
    ({"metadata": {"model": "teacher"}}, ""),
    ({"model": "teacher-2026", "metadata": {"env": "prod"}, "created_after": 201}, "d"),
    ({"created_after": 200}, "bcd"),
    ({"created_before": 200}, "ab"),
    ({"created_after": 200, "created_before": 300}, "bc"),
    ({"source": "gateway"}, "c"),
    ({"tools": True}, "d"),
    ({"tools": False}, "abc"),
    ({"pinned": True}, "b"),
    ({"pinned": False}, "acd"),
]


@pytest.fixture
def four(store):
    tools = [{"type": "function", "function": {"name": "f"}}]
    store.add_completion(completion("a", created=100))
    store.add_completion(completion("b", created=200, metadata={"team": "a", "env": "prod"}, pinned=True))
    store.add_completion(completion("c", created=300, metadata={"team": "b"}, source="gateway", model="teacher-2027"))
    request = {"model": "teacher", "messages": [], "tools": tools}
    store.add_completion(completion("d", created=400, metadata={"env": "prod", "team": "a"}, request=request))
    return store


@pytest.mark.parametrize(("conditions", "expected"), FILTERS)
def test_a_filter_finds_what_fits_all_of_it(four, conditions, expected):
    wanted = CompletionFilter(**conditions)
    assert names(four.iter_completions(wanted)) == list(expected)
    assert names(four.list_completions(wanted).data) == list(expected)


@pytest.mark.parametrize("conditions", [{}, {"metadata": {"team": "a"}}])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_pages_follow_one_another_without_gap_or_repetition(store, conditions, order):
    for n in range(7):
        store.add_completion(completion(str(n)))
    wanted, found, after = CompletionFilter(**conditions), [], None
    while True:
        page = store.list_completions(wanted, after=after, limit=3, order=order)
        found += names(page.data)
        if not page.has_more:
            break
        after = page.data[-1].id
    assert found == [str(n) for n in (range(7) if order == "asc" else reversed(range(7)))]


def test_a_page_goes_on_after_a_completion_that_was_deleted(store):
    for n in range(4):
        store.add_completion(completion(str(n)))
    store.delete_completion("chatcmpl-1")
    assert names(store.list_completions(after="chatcmpl-1").data) == ["2", "3"]


def test_a_long_read_is_whole_and_leaves_out_what_comes_meanwhile(store):
    for n in range(250):
        store.add_completion(completion(str(n)))
    found = []
    for kept in store.iter_completions(CompletionFilter(model="teacher")):
        if not found:
            store.add_completion(completion("late"))
        found.append(kept)
    assert names(found) == [str(n) for n in range(250)]


def test_metadata_is_added_to_and_emptied_and_found_by_its_new_pairs(store):
    store.add_completion(completion("a"))
    changed = store.update_completion("chatcmpl-a", metadata={"team": "b", "good": "yes"})
    assert changed.metadata == {"team": "b", "good": "yes"}
    assert store.get_completion("chatcmpl-a") == changed
    assert changed.bytes == size(changed)
    assert names(store.iter_completions(CompletionFilter(metadata={"good": "yes"}))) == ["a"]
    assert names(store.iter_completions(CompletionFilter(metadata={"team": "a"}))) == []
    assert store.update_completion("chatcmpl-a", metadata={}).metadata == {}
    assert names(store.iter_completions(CompletionFilter(model="teacher-2026"))) == ["a"]


def test_metadata_never_has_more_than_sixteen_pairs(store):
    store.add_completion(completion("a", metadata={str(n): "x" for n in range(16)}))
    with pytest.raises(InvalidRequest, match="17 pairs"):
        store.update_completion("chatcmpl-a", metadata={"one": "more"})


def test_the_oldest_make_room_and_what_is_pinned_stays(store):
    one = size(completion("0"))
    for n in range(4):
        store.add_completion(completion(str(n), created=100 + n), max_bytes=4 * one)
    store.update_completion("chatcmpl-0", pinned=True)
    assert store.add_completion(completion("4", created=104), max_bytes=4 * one) == 1
    assert names(store.iter_completions()) == ["0", "2", "3", "4"]
    totals = store.completion_totals()
    assert (totals.completions, totals.bytes, totals.evicted, totals.pinned) == (4, 4 * one, 1, 1)


def test_with_everything_pinned_a_new_one_is_refused_and_nothing_is_lost(store):
    one = size(completion("0"))
    for n in range(2):
        store.add_completion(completion(str(n), pinned=True), max_bytes=2 * one)
    with pytest.raises(Unavailable, match="are pinned") as refused:
        store.add_completion(completion("2"), max_bytes=2 * one)
    assert refused.value.code == "recording_full"
    assert names(store.iter_completions()) == ["0", "1"]
    assert store.completion_totals().refused == 1
    store.update_completion("chatcmpl-0", pinned=False)
    store.add_completion(completion("2"), max_bytes=2 * one)
    assert names(store.iter_completions()) == ["1", "2"]


def test_one_that_is_larger_than_the_limit_drives_nothing_out(store):
    store.add_completion(completion("a"))
    with pytest.raises(Unavailable):
        store.add_completion(completion("b", metadata={"x": "y" * 512}), max_bytes=size(completion("a")))
    assert names(store.iter_completions()) == ["a"]


def test_a_lowered_limit_is_met_by_the_oldest(store):
    one = size(completion("0"))
    for n in range(5):
        store.add_completion(completion(str(n), created=100 + n, pinned=n == 0))
    assert store.evict_completions(0) == 0
    assert store.evict_completions(5 * one) == 0
    assert store.evict_completions(2 * one + 1) == 3
    assert names(store.iter_completions()) == ["0", "4"]
    assert store.evict_completions(1) == 1  # what is pinned stays, whatever the limit
    assert names(store.iter_completions()) == ["0"]


def test_what_is_too_old_goes_unless_it_is_pinned(store):
    for n in range(4):
        store.add_completion(completion(str(n), created=100 + n, pinned=n == 1))
    assert store.expire_completions(103) == 2
    assert names(store.iter_completions()) == ["1", "3"]
    assert store.completion_totals().expired == 2


STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "pin", "unpin", "label", "delete", "evict", "expire"]), st.integers(0, 9)),
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(STEPS)
def test_the_sums_are_those_of_what_is_there_whatever_happened(tmp_path_factory, steps):
    store = Store(connect(tmp_path_factory.mktemp("home")))
    for n, (step, which) in enumerate(steps):
        kept = list(store.iter_completions())
        chosen = kept[which % len(kept)].id if kept else None
        if step == "add":
            store.add_completion(completion(str(n), created=n, metadata={"n": "x" * which}))
        elif step == "evict":
            store.evict_completions(500 * which)
        elif step == "expire":
            store.expire_completions(which)
        elif chosen is not None and step == "delete":
            store.delete_completion(chosen)
        elif chosen is not None and step == "label":
            store.update_completion(chosen, metadata={"label": "y" * which})
        elif chosen is not None:
            store.update_completion(chosen, pinned=step == "pin")
    kept, totals = list(store.iter_completions()), store.completion_totals()
    store.close()
    assert (totals.completions, totals.bytes) == (len(kept), sum(size(one) for one in kept))
    pinned = [one for one in kept if one.pinned]
    assert (totals.pinned, totals.pinned_bytes) == (len(pinned), sum(size(one) for one in pinned))
