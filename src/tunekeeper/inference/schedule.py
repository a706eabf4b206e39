"""Which request computes which tokens next, and where their keys and values lie.

No torch, no threads, no clock.

Every sequence is a list of tokens of which the first `computed` have keys and values in its region of the
cache. A step computes some of the rest: one token of a request that generates, a chunk of a new prompt. So
prompts, tokens that a grammar forces and requests that had to give up their region all go the same way.

What a finished sequence computed is kept until the room is needed: a new prompt that begins alike copies it
instead of computing it. Equal prompts that arrive together are computed once: the later ones wait for the
first.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tunekeeper.inference.regions import Region, Regions, size_for

ROOM = 64
"""New tokens that a region has room for at first; a sequence that generates more moves to a larger region."""

WORTH_WAITING = 32
"""Prompt tokens that a running computation must be about to provide, for a new prompt to wait for them."""

LEAST_SHARED = 64
"""Tokens of a beginning that sequences must have in common to read its keys and values together."""

WORTH_SHARING = 8192
"""Keys whose reading this must save, for it costs a few calls more."""

NEVER = 1 << 60
"""`adapter_from` of a sequence on the bare base."""


@dataclass(eq=False, slots=True)
class Track:
    """One sequence of tokens on its way through the cache; `owner` is whose answer it is."""

    tokens: list[int]
    owner: Any = None
    adapter: Any = None
    adapter_from: int = NEVER
    """First token that the adapter acts on; keys and values before it are the bare base's, and shared."""
    region: Region | None = None
    computed: int = 0
    n_cached: int = 0
    """Tokens that were copied rather than computed when the sequence first began."""
    leader: "Track | None" = None
    """Whose keys and values of the first `n_shared` tokens are read for all that begin alike."""
    n_shared: int = 0
    n_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that have no keys and values yet."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the keys and values of `n` tokens between two regions."""

    source: Region
    target: Region
    n: int


@dataclass(frozen=True, slots=True)
class Work:
    """Compute the next `n` tokens of a track."""

    track: Track
    n: int

    @property
    def reaches_end(self) -> bool:
        """Whether the last of them is the last that there is, so that the next token can be chosen."""
        return self.n == self.track.pending


@dataclass(frozen=True, slots=True)
class Step:
    """First the copies, in this order; then the work, as one batch."""

    copies: tuple[Copy, ...]
    work: tuple[Work, ...]


class Scheduler:
    """Admits, grows, shares and evicts; `plan` says what to do, `done` is told that it was done."""

    def __init__(self, cache_tokens: int, max_batch: int) -> None:
        self.regions = Regions(cache_tokens)
        self.max_batch = max_batch
        self.waiting: deque[Track] = deque()
        self.running: list[Track] = []
        self._kept: list[Track] = []  # finished, least recently used first
        self._copies: list[Copy] = []
        self._together: list[Track] = []  # those that generate, as `share` last saw them

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest sequence that fits."""
        return self.regions.largest

    def add(self, track: Track) -> None:
        """Queue a new sequence."""
        self.waiting.append(track)

    def remove(self, track: Track, *, keep: bool = True) -> None:
        """Take out a finished or cancelled sequence; `keep`: what it computed may serve others."""
        if track in self.waiting:
            self.waiting.remove(track)
            return
        self.running.remove(track)
        region, track.region = track.region, None
        if region is None:
            return
        if not keep or track.computed == 0:
            self.regions.give_back(region)
            return
        del track.tokens[track.computed :]
        track.owner = None
        track.region = self._put_away(region, track.computed)
        self._kept.append(track)

    def _put_away(self, region: Region, n_tokens: int) -> Region:
        """Move what is kept to the far end: those that run stay close together, for their attention is one call."""
        size = size_for(n_tokens)
        shelf = self.regions.take(size, high=True)
        if shelf is None or shelf.start < region.start:
            if shelf is not None:
                self.regions.give_back(shelf)
            return self.regions.shrink(region, size)
        self._copies.append(Copy(region, shelf, n_tokens))
        self.regions.give_back(region)
        return shelf

    def forget(self) -> None:
        """Drop all that is kept."""
        while self._evict():
            pass

    def plan(self, budget: int) -> Step:
        """The next step: every sequence that generates, and prompt tokens up to `budget`."""
        self._admit()
        work = []
        for track in list(self.running):
            if track not in self.running:
                continue  # it had to make room for an earlier one
            n = min(track.pending, budget) if track.pending > 1 else 1
            if n and self._fit(track, track.computed + n):
                work.append(Work(track, n))
                budget -= n if track.pending > 1 else 0
        generating = [item.track for item in work if item.n == 1]
        if generating != self._together:
            self._together = generating
            share(generating)
        copies, self._copies = tuple(self._copies), []
        return Step(copies, tuple(work))

    def done(self, step: Step) -> None:
        """The step was computed."""
        for item in step.work:
            item.track.computed += item.n

    def _admit(self) -> None:
        later: list[Track] = []
        while self.waiting and len(self.running) < self.max_batch:
            track = self.waiting.popleft()
            if self._should_wait(track):
                later.append(track)
            elif not self._start(track):
                self.waiting.appendleft(track)
                break
        self.waiting.extendleft(reversed(later))

    def _start(self, track: Track) -> bool:
        """Give a track its region and the longest prefix that some other track holds."""
        donor, n = self._best(track)
        if donor is not None and donor in self._kept:
            # The most recently used: making room must not evict what is about to be copied.
            self._kept.remove(donor)
            self._kept.append(donor)
        size = size_for(min(len(track.tokens) + ROOM, self.max_tokens))
        region = self._take(size, spare=donor)
        if region is None and donor is not None and donor in self._kept and donor.region is not None:
            # The last room is where the prefix lies: it is copied before anything is written there.
            self._kept.remove(donor)
            self.regions.give_back(donor.region)
            region = self._take(size)
        if region is None:
            return False
        track.region, track.computed = region, n
        if donor is not None and donor.region is not None and donor.region.start != region.start:
            self._copies.append(Copy(donor.region, region, n))
        if len(track.tokens) == track.n_prompt:
            track.n_cached = n
        self.running.append(track)
        return True

    def _best(self, track: Track) -> tuple[Track | None, int]:
        """Who holds the longest usable beginning, and its length; the last token is always computed."""
        most = len(track.tokens) - 1
        found: tuple[Track | None, int] = (None, 0)
        for other in (*self._kept, *self.running):
            n = min(common(track, other), other.computed, most)
            if n > found[1]:
                found = (other, n)
        return found

    def _should_wait(self, track: Track) -> bool:
        """Whether a running prompt is about to provide much more than is there already."""
        most = len(track.tokens) - 1
        coming = [min(common(track, other), other.n_prompt, most) for other in self.running if other.pending > 1]
        return max(coming, default=0) >= self._best(track)[1] + WORTH_WAITING

    def _fit(self, track: Track, n_tokens: int) -> bool:
        """Make sure that a running track's region holds so many tokens; False: it waits for a later step."""
        region = track.region
        if region is None or region.size >= n_tokens:
            return region is not None
        larger = self._take(size_for(n_tokens))
        while larger is None:
            youngest = self.running[-1]
            self._suspend(youngest)
            if youngest is track:
                return False
            larger = self._take(size_for(n_tokens))
        self._copies.append(Copy(region, larger, track.computed))
        self.regions.give_back(region)
        track.region = larger
        return True

    def _suspend(self, track: Track) -> None:
        """Take a running track's region; it starts again, first in the queue, computing its tokens anew."""
        self.running.remove(track)
        if track.region is not None:
            self.regions.give_back(track.region)
        track.region, track.computed = None, 0
        self.waiting.appendleft(track)

    def _take(self, size: int, spare: Track | None = None) -> Region | None:
        region = self.regions.take(size)
        while region is None and self._evict(spare):
            region = self.regions.take(size)
        return region

    def _evict(self, spare: Track | None = None) -> bool:
        """Drop the least recently used sequence that is kept."""
        victim = next((track for track in self._kept if track is not spare), None)
        if victim is None or victim.region is None:
            return False
        self._kept.remove(victim)
        self.regions.give_back(victim.region)
        return True


def share(tracks: Sequence[Track]) -> None:
    """Say of each sequence which beginning it has in common with others, so that it is read once for all."""
    group: list[Track] = []
    n = 0
    for track in sorted(tracks, key=lambda track: track.tokens):
        track.leader, track.n_shared = None, 0
        more = min(common(group[0], track), track.computed) if group else 0
        if more >= max(LEAST_SHARED, n // 2):  # a shorter beginning for all would cost more than it saves
            n = min(n, more)
            group.append(track)
            continue
        _lead(group, n)
        group, n = [track], track.computed
    _lead(group, n)


def _lead(group: Sequence[Track], n: int) -> None:
    if (len(group) - 1) * n < WORTH_SHARING:
        return
    for track in group:
        track.leader, track.n_shared = group[0], n


def common(a: Track, b: Track) -> int:
    """How many tokens at the beginning are equal and were computed by the same weights."""
    n = common_prefix(a.tokens, b.tokens)
    if a.adapter is b.adapter and a.adapter_from == b.adapter_from:
        return n
    return min(n, a.adapter_from, b.adapter_from)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the longest common beginning."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n
    while low < high:  # slices compare in C; a loop over the tokens would not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low


def even_runs(regions: Sequence[Region], shared: Sequence[int] = ()) -> list[tuple[int, int]]:
    """Split regions into runs [start, end) of one size at one distance: each is a single strided view.

    `shared` is how much of each is not to be read; a run has one number.
    """
    runs: list[tuple[int, int]] = []
    start = 0
    for end in range(1, len(regions) + 1):
        together = end < len(regions) and (not shared or shared[end] == shared[start])
        if not together or not _continues(regions[start : end + 1]):
            runs.append((start, end))
            start = end
    return runs


def _continues(items: Sequence[Region]) -> bool:
    *_, a, b = items
    if a.size != b.size or b.start <= a.start:
        return False
    return len(items) == 2 or b.start - a.start == items[1].start - items[0].start
