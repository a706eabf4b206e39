"""The attention of a step against plain attention, one sequence at a time."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from tunekeeper.inference.cache import KeyValueCache, StepAttention
from tunekeeper.inference.regions import Region
from tunekeeper.inference.schedule import Track, Work, share
from tunekeeper.models.decoder import DecoderShape

SHAPE = DecoderShape(
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    head_dim=8,
    hidden_size=48,
    inner_size=64,
    vocab_size=64,
    max_positions=2048,
)


@pytest.fixture
def cache():
    cache = KeyValueCache(SHAPE, 7 * 4096, torch.float32, torch.device("cpu"))
    source = torch.Generator().manual_seed(1)
    for buffer in (cache.keys, cache.values):
        buffer.copy_(torch.randn(buffer.shape, generator=source))
    return cache


def placed(tokens: list[int], start: int, size: int, pending: int = 1) -> Track:
    track = Track(tokens)
    track.region, track.computed = Region(start, size), len(tokens) - pending
    return track


def rows_of(n: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(2)
    return [torch.randn(n, heads, SHAPE.head_dim, generator=source) for heads in (6, 2, 2)]


def plain(cache: KeyValueCache, layer: int, work: list[Work], q_THD: torch.Tensor) -> torch.Tensor:
    """Each row by itself, over the keys that its region holds."""
    seen, row = [], 0
    for item in work:
        for place in range(item.track.computed, item.track.computed + item.n):
            slots = slice(item.track.region.start, item.track.region.start + place + 1)
            keys, values = (x[layer][:, slots].repeat_interleave(3, 0) for x in (cache.keys, cache.values))
            seen.append(F.scaled_dot_product_attention(q_THD[row][:, None], keys, values)[:, 0])
            row += 1
    return torch.stack(seen)


def test_every_row_sees_its_own_sequence(cache):
    tracks = [placed([1] * 40, 0, 64), placed([2] * 60, 64, 64), placed([3] * 100, 256, 128, pending=30)]
    work = [Work(track, track.pending) for track in tracks]
    q, k, v = rows_of(32)
    got = StepAttention(cache, work)(1, q, k, v)
    assert torch.allclose(got, plain(cache, 1, work, q), atol=1e-6)


def test_a_beginning_in_common_is_read_once_and_nothing_changes(cache):
    shared = list(range(1, 64)) * 33
    tracks = [placed([*shared, *[64 + n] * (1 + 7 * n)], n * 4096, 4096) for n in range(6)]
    tracks.append(placed([9] * 50, 6 * 4096, 64))
    for buffer in (cache.keys, cache.values):
        for n in range(1, 6):
            buffer[:, :, n * 4096 : n * 4096 + len(shared)] = buffer[:, :, : len(shared)]
    share(tracks)
    assert [track.n_shared for track in tracks] == [len(shared)] * 6 + [0]
    work = [Work(track, 1) for track in tracks]
    q, k, v = rows_of(7)
    wanted = plain_after_writing(cache, work, q, k, v)
    got = StepAttention(cache, work)(0, q, k, v)
    assert torch.allclose(got, wanted, atol=1e-6)
    first = tracks[0].leader.region.start
    for n in range(6):  # only the leader's copy is read: what lies in the others' may be anything
        if n * 4096 != first:
            cache.keys[:, :, n * 4096 : n * 4096 + len(shared)] = math.nan
    assert torch.allclose(StepAttention(cache, work)(0, q, k, v), wanted, atol=1e-6)


def plain_after_writing(cache, work, q, k, v):
    for track in (item.track for item in work):
        track.leader = None
    apart = StepAttention(cache, work)(0, q, k, v)
    wanted = plain(cache, 0, work, q)
    assert torch.allclose(apart, wanted, atol=1e-6)
    share([item.track for item in work])
    return wanted


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cache_takes_memory_where_sequences_are_and_nowhere_else() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    shape = DecoderShape(
        n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64, hidden_size=576, inner_size=8, vocab_size=8, max_positions=8
    )
    before = resident_bytes()
    large = KeyValueCache(shape, 65_536, torch.float32, torch.device("cpu"))  # 3 GB, had it all
    large.clear(Region(0, 64))
    used = 2 * 30 * 3 * 64 * 64 * 4
    assert resident_bytes() - before < 2 * used + 4_000_000
    assert not large.keys[:, :, :64].any()
