import random

import pytest

from tunekeeper.inference.regions import Region
from tunekeeper.inference.schedule import NEVER, Scheduler, Track, common, common_prefix, even_runs, share


def run(scheduler: Scheduler, track: Track, budget: int = 100) -> None:
    """Compute a track's prompt, and finish it."""
    scheduler.add(track)
    while track.pending or track.region is None:
        scheduler.done(scheduler.plan(budget))
    scheduler.remove(track)


def test_a_long_prompt_is_cut_while_others_generate():
    scheduler = Scheduler(4096, 8)
    short, long = Track([1, 2]), Track(list(range(10, 210)))
    scheduler.add(short)
    scheduler.done(scheduler.plan(64))
    short.tokens.append(3)
    scheduler.add(long)
    step = scheduler.plan(64)
    assert [(item.track, item.n) for item in step.work] == [(short, 1), (long, 64)]
    assert [item.reaches_end for item in step.work] == [True, False]


def test_a_prompt_that_begins_alike_is_copied():
    scheduler = Scheduler(4096, 8)
    run(scheduler, Track([1, 2, 3, 4, 5]))
    track = Track([1, 2, 3, 9])
    scheduler.add(track)
    step = scheduler.plan(100)
    assert track.n_cached == 3
    assert [item.n for item in step.copies if item.target == track.region] == [3]
    assert [item.n for item in step.work] == [1]


def test_the_last_token_of_an_equal_prompt_is_computed():
    scheduler = Scheduler(4096, 8)
    run(scheduler, Track([1, 2, 3]))
    track = Track([1, 2, 3])
    scheduler.add(track)
    assert [item.n for item in scheduler.plan(100).work] == [1]


def test_equal_prompts_that_come_together_are_computed_once():
    scheduler = Scheduler(4096, 8)
    tracks = [Track(list(range(100))) for _ in range(4)]
    for track in tracks:
        scheduler.add(track)
    first = scheduler.plan(200)
    assert [item.n for item in first.work] == [100]
    scheduler.done(first)
    tracks[0].tokens.append(7)
    second = scheduler.plan(200)
    assert [item.n for item in second.work] == [1, 1, 1, 1]
    assert [item.n for item in second.copies] == [99, 99, 99]


@pytest.mark.parametrize(
    ("start_a", "start_b", "shared"),
    [(NEVER, NEVER, 4), (0, 0, 4), (2, 2, 4), (2, 3, 2), (NEVER, 3, 3), (NEVER, 0, 0)],
)
def test_tokens_are_shared_only_where_the_same_weights_computed_them(start_a, start_b, shared):
    adapter = object()
    a = Track([1, 2, 3, 4], adapter=None if start_a == NEVER else adapter, adapter_from=start_a)
    b = Track([1, 2, 3, 4], adapter=None if start_b == NEVER else adapter, adapter_from=start_b)
    assert common(a, b) == common(b, a) == shared


def test_two_adapters_share_nothing_but_the_bare_base():
    a = Track([1, 2, 3], adapter=object(), adapter_from=1)
    b = Track([1, 2, 3], adapter=object(), adapter_from=1)
    assert common(a, b) == 1


def test_what_was_used_least_recently_makes_room():
    scheduler = Scheduler(256, 8)
    run(scheduler, Track([1] * 60))
    run(scheduler, Track([2] * 60))
    for number in (3, 4, 5):
        run(scheduler, Track([number] * 60))
    track = Track([5] * 60)
    scheduler.add(track)
    scheduler.plan(100)
    assert track.n_cached == 59
    track = Track([1] * 60)
    scheduler.add(track)
    scheduler.plan(100)
    assert track.n_cached == 0


def test_where_only_the_equal_beginnings_own_room_is_left_it_is_taken_over():
    scheduler = Scheduler(128, 8)
    run(scheduler, Track([1] * 60))
    track = Track([1] * 50 + [2] * 10)
    scheduler.add(track)
    step = scheduler.plan(100)
    assert (track.n_cached, step.copies) == (50, ()), "it lies there already"
    assert [item.n for item in step.work] == [10]


def test_a_sequence_that_outgrows_its_region_moves_with_what_it_computed():
    scheduler = Scheduler(1024, 8)
    track = Track([1, 2, 3])
    scheduler.add(track)
    scheduler.done(scheduler.plan(100))
    before = track.region
    while track.region == before:
        track.tokens.append(4)
        step = scheduler.plan(100)
        scheduler.done(step)
    assert [(item.source, item.n) for item in step.copies] == [(before, before.size)]


def test_when_the_cache_is_full_the_youngest_starts_again_later():
    scheduler = Scheduler(256, 8)
    old, young = Track([1] * 60), Track([2] * 60)
    scheduler.add(old)
    scheduler.add(young)
    for _ in range(80):
        step = scheduler.plan(100)
        scheduler.done(step)
        for item in step.work:
            if item.track.pending == 0:
                item.track.tokens.append(9)
    assert old.computed > 128
    assert young.region is None
    scheduler.remove(old)
    scheduler.done(scheduler.plan(1000))
    assert young.pending == 0
    assert young.n_cached == 0


def test_a_cancelled_sequence_gives_its_room_back():
    scheduler = Scheduler(1024, 8)
    for _ in range(20):
        track = Track([1] * 500)
        scheduler.add(track)
        scheduler.plan(10)
        scheduler.remove(track)
    scheduler.forget()
    assert scheduler.regions.n_free == 1024


def test_any_mix_of_requests_ends_and_loses_no_room():
    source = random.Random(5)
    scheduler = Scheduler(2048, 5)
    live: list[tuple[Track, int]] = []
    n_ended = 0
    for _ in range(600):
        if source.random() < 0.3:
            track = Track([source.randrange(3) for _ in range(source.randrange(1, 200))])
            live.append((track, len(track.tokens) + source.randrange(1, 150)))
            scheduler.add(track)
        step = scheduler.plan(source.choice([32, 128]))
        taken = [item.track.region for item in step.work]
        slots = [slot for region in taken for slot in range(region.start, region.start + region.size)]
        assert len(slots) == len(set(slots))
        assert all(item.track.region.size >= item.track.computed + item.n for item in step.work)
        scheduler.done(step)
        for item in step.work:
            if item.track.pending == 0:
                item.track.tokens.append(source.randrange(3))
        for track, limit in list(live):
            if len(track.tokens) > limit:
                live.remove((track, limit))
                scheduler.remove(track)
                n_ended += 1
    assert n_ended > 30
    for track, _ in live:
        scheduler.remove(track)
    scheduler.forget()
    assert scheduler.regions.n_free == 2048


@pytest.mark.parametrize(
    ("a", "b", "n"), [([], [1], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 4, 5], [1, 2, 3], 2), ([2], [1], 0)]
)
def test_common_prefix(a, b, n):
    assert common_prefix(a, b) == common_prefix(b, a) == n


def test_regions_of_one_size_at_one_distance_are_one_run():
    at = [Region(n * 64, 64) for n in (0, 2, 4, 5, 7)]
    assert even_runs(at) == [(0, 3), (3, 5)]
    assert even_runs([Region(0, 64), Region(64, 128), Region(192, 128)]) == [(0, 1), (1, 3)]
    assert even_runs([]) == []


def begun(tokens, adapter=None, adapter_from=NEVER) -> Track:
    track = Track(tokens, adapter=adapter, adapter_from=adapter_from)
    track.computed = len(tokens) - 1
    return track


def test_those_that_begin_alike_are_told_what_they_share():
    common = [1] * 4000
    tracks = [begun([*common, 2]), begun([3] * 500), begun([*common, 4, 5]), begun([*common[:3000], 6, 7])]
    share(tracks)
    assert [track.n_shared for track in tracks] == [0, 0, 0, 0], "two spared readings of 3,000 are not worth it"
    tracks.append(begun([*common, 8]))
    share(tracks)
    assert [track.n_shared for track in tracks] == [3000, 0, 3000, 3000, 3000]
    leaders = {id(track.leader) for track in tracks if track.n_shared}
    assert len(leaders) == 1


def test_one_that_has_little_in_common_does_not_spoil_it_for_the_others():
    common = [1] * 5000
    tracks = [begun([*common, n]) for n in (2, 3, 4)] + [begun([*common[:100], 5])]
    share(tracks)
    assert [track.n_shared for track in tracks] == [5000, 5000, 5000, 0]


def test_two_adapters_share_what_the_base_computed():
    one, other = object(), object()
    tracks = [begun([1] * 5000, one, 4500), begun([1] * 5000, other, 4600), begun([1] * 5000, one, 4500)]
    share(tracks)
    assert [track.n_shared for track in tracks] == [4500, 4500, 4500]


def test_sharing_follows_those_that_come_and_go():
    scheduler = Scheduler(65536, 8)
    tracks = [Track([*[1] * 4200, n]) for n in range(3)]
    for track in tracks:
        scheduler.add(track)
    for _ in range(4):
        step = scheduler.plan(20000)
        scheduler.done(step)
        for item in step.work:
            if not item.track.pending:
                item.track.tokens.append(9)
    assert [track.n_shared for track in tracks] == [4200] * 3
    scheduler.remove(tracks[2])
    scheduler.done(scheduler.plan(20000))
    assert [track.n_shared for track in tracks[:2]] == [0, 0]


def test_what_is_kept_makes_way_for_those_that_run():
    scheduler = Scheduler(4096, 8)
    tracks = [Track([i, *range(20)]) for i in range(6)]
    for track in tracks[:5]:
        scheduler.add(track)
    scheduler.done(scheduler.plan(500))
    scheduler.remove(tracks[1])
    scheduler.remove(tracks[3])
    scheduler.add(tracks[5])
    step = scheduler.plan(500)
    assert [item.n for item in step.copies] == [21, 21], "what they computed went to the far end"
    assert {item.target.start for item in step.copies} == {4032, 3968}
    assert tracks[5].region is not None
    assert tracks[5].region.start < 5 * 128, "the new one lies in the gap, beside the others"
    again = Track([1, *range(20)])
    scheduler.add(again)
    scheduler.plan(500)
    assert again.n_cached == 20
