"""Regions of the key-value cache: which stretch of token slots belongs to whom. Arithmetic only, no memory.

A buddy allocator: sizes are powers of two from `SMALLEST` tokens, a region starts at a multiple of its size,
and freed halves join again. Regions of one size therefore lie at even distances, so that the attention of
many running requests is one call over a strided view.
"""

from dataclasses import dataclass

SMALLEST = 64
"""Tokens in the smallest region: half of it is wasted on average, and a reply is rarely shorter."""


@dataclass(frozen=True, slots=True)
class Region:
    """Token slots [start, start + size) of the cache."""

    start: int
    size: int

    @property
    def buddy(self) -> "Region":
        """The region that this one was, or could be, split from."""
        return Region(self.start ^ self.size, self.size)


def size_for(n_tokens: int) -> int:
    """The size of the region that holds so many tokens."""
    return max(SMALLEST, 1 << (n_tokens - 1).bit_length())


class Regions:
    """Hands out regions of `total` token slots (rounded down to whole smallest regions)."""

    def __init__(self, total: int) -> None:
        self.total = total // SMALLEST * SMALLEST
        self._free: set[Region] = set()
        start = 0
        for bit in reversed(range(self.total.bit_length())):
            if self.total >> bit & 1:
                self._free.add(Region(start, 1 << bit))
                start += 1 << bit
        self.largest = max((region.size for region in self._free), default=0)

    @property
    def n_free(self) -> int:
        """Token slots that belong to nobody."""
        return sum(region.size for region in self._free)

    def take(self, size: int, *, high: bool = False) -> Region | None:
        """A region of this size, the lowest that fits best, or the very highest; None: there is none."""
        fits = [region for region in self._free if region.size >= size]
        if not fits:
            return None
        region = max(fits, key=lambda r: r.start) if high else min(fits, key=lambda r: (r.size, r.start))
        self._free.remove(region)
        return self.shrink(region, size, high=high)

    def shrink(self, region: Region, size: int, *, high: bool = False) -> Region:
        """Give back all but the first (`high`: the last) `size` slots of a region that was taken."""
        while region.size > size:
            half = region.size // 2
            region = Region(region.start + half if high else region.start, half)
            self._free.add(region.buddy)
        return region

    def give_back(self, region: Region) -> None:
        """Free a region; free buddies become one."""
        while region.buddy in self._free:
            self._free.remove(region.buddy)
            region = Region(min(region.start, region.buddy.start), region.size * 2)
        self._free.add(region)
