import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunekeeper.inference.regions import SMALLEST, Region, Regions, size_for


@pytest.mark.parametrize(("n_tokens", "size"), [(1, SMALLEST), (SMALLEST, SMALLEST), (65, 128), (128, 128), (129, 256)])
def test_a_region_is_the_next_power_of_two(n_tokens, size):
    assert size_for(n_tokens) == size


def test_a_size_that_is_no_power_of_two_is_used_whole():
    regions = Regions(3 * SMALLEST + 5)
    assert regions.n_free == 3 * SMALLEST
    assert regions.largest == 2 * SMALLEST
    assert regions.take(2 * SMALLEST) is not None
    assert regions.take(SMALLEST) is not None
    assert regions.take(SMALLEST) is None


def test_freed_halves_join_again():
    regions = Regions(1024)
    small = [regions.take(SMALLEST) for _ in range(1024 // SMALLEST)]
    assert regions.take(SMALLEST) is None
    for region in small:
        regions.give_back(region)
    assert regions.take(1024) == Region(0, 1024)


def test_shrinking_gives_the_rest_back():
    regions = Regions(512)
    region = regions.shrink(regions.take(512), 128)
    assert region == Region(0, 128)
    assert regions.n_free == 384


@given(st.integers(64, 5000), st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=60))
def test_regions_never_overlap_and_none_is_lost(total, actions):
    regions = Regions(total)
    taken: list[Region] = []
    for takes, n in actions:
        if takes:
            region = regions.take(size_for(n))
            if region is not None:
                taken.append(region)
        elif taken:
            regions.give_back(taken.pop(n % len(taken)))
        slots = [slot for region in taken for slot in range(region.start, region.start + region.size)]
        assert len(slots) == len(set(slots)) == regions.total - regions.n_free
        assert all(slot < regions.total for slot in slots)
    for region in taken:
        regions.give_back(region)
    assert regions.take(regions.largest) is not None


def test_a_high_region_is_the_very_last_and_leaves_the_rest_whole():
    regions = Regions(1024)
    high = regions.take(128, high=True)
    assert high == Region(896, 128)
    assert regions.take(512) == Region(0, 512)
    assert regions.n_free == 384
    regions.give_back(high)
    assert regions.n_free == 512
