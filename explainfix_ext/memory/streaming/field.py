"""Defines Field, what a network reads of an image along one axis, and cuts an axis into tiles by it."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Names positions of one tile along an axis: image[read] gives a result, and result[kept] is output[written]."""

    read: slice
    written: slice
    kept: slice


class Field(NamedTuple):
    """Says what a network reads along one axis, for any image.

    The axis is counted in blocks: `period` pixels of the image, which are `steps` places of the output. An image that
    is shifted by a block gives an output that is shifted by a block, and block k of the output reads the blocks
    k - before to k + after of the image. Most networks have one step; a decoder that ends at full size has `period`.
    """

    period: int
    steps: int
    before: int
    after: int

    @property
    def halo(self) -> int:
        """Pixels that a tile reads beyond its own."""
        return (self.before + self.after) * self.period

    def whole_blocks(self, pixels: int) -> int:
        """Returns the multiple of the period that is nearest to `pixels` from below, and at least one period."""
        return max(pixels // self.period, 1) * self.period

    def tiles(self, length: int, pixels: int) -> list[Tile]:
        """Cuts an axis into tiles of outputs that do not overlap, and that give the output together.

        What a tile reads begins at a multiple of the period, so that strides fall on the same pixels as in the whole
        image. A tile within the image reads all that its outputs need. The last one takes all that is left, be it
        blocks that read padding; it needs no halo after it.

        Args:
            length: how many pixels the image has.
            pixels: of a tile without its halo, a multiple of the period.
        """
        per_tile = pixels // self.period
        starts = range(0, max(length // self.period - self.after, 1), per_tile)
        return [self._tile(start, None if start == starts[-1] else start + per_tile) for start in starts]

    def _tile(self, first: int, end: int | None) -> Tile:
        """Returns the tile of blocks `first` to `end` - 1, or of all from `first` on."""
        begin = max(first - self.before, 0)
        read_to = None if end is None else (end + self.after) * self.period
        written_to = None if end is None else end * self.steps
        kept_to = None if end is None else (end - begin) * self.steps
        return Tile(
            slice(begin * self.period, read_to),
            slice(first * self.steps, written_to),
            slice((first - begin) * self.steps, kept_to),
        )
