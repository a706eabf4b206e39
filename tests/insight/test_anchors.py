import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from tunekeeper.insight.report import anchors


def test_an_anchor_is_the_beginning_of_the_md5_of_the_path() -> None:
    # The two anchors of a report that was published in this format.
    paths = [
        "articles/ai-services/openai/concepts/fine-tuning-considerations.md",
        "articles/ai-services/openai/concepts/model-retirements.md",
    ]
    assert anchors(paths) == ("item-71d8ac", "item-03fc2e")


def colliding() -> tuple[str, str]:
    seen: dict[str, str] = {}
    for n in range(20_000):
        digest = hashlib.md5(f"{n}.md".encode()).hexdigest()[:6]
        if digest in seen:
            return seen[digest], f"{n}.md"
        seen[digest] = f"{n}.md"
    raise AssertionError


def test_anchors_that_collide_are_longer_and_differ_in_any_order() -> None:
    one, other = colliding()
    first, second = anchors([one, other])
    assert first != second
    assert len(first) == len(second) > len("item-71d8ac")
    assert anchors([other, "x.md", one]) == (second, anchors(["x.md"])[0], first)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a.md", "b.md", "c/ü.md"]), max_size=12))
def test_anchors_are_unique_even_for_equal_paths(paths: list[str]) -> None:
    assert len({*anchors(paths)}) == len(paths)
