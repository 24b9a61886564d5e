"""The window grid: where windows lie, and which pixels a block of them needs.

Pure geometry for any number of axes, without Dask and without I/O, so that it can be
tested against brute force. Axis order is array order, (y, x) or (z, y, x); units are
pixels of the image at the chosen resolution.

Not covered: how large a block should be (`daskdmed.tiling.blocks`), reading pixels and
cutting them into windows (`daskdmed.tiling.extract`), masks (`daskdmed.tiling.mask`).
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from daskdmed.core.errors import GeometryError, UsageError
from daskdmed.core.region import Region
from daskdmed.core.types import Array

Edge: TypeAlias = Literal["pad", "shift", "drop"]
#: one number for every axis, or one per axis in array order
PerAxis: TypeAlias = int | Sequence[int]
#: int = pixels, float in [0, 1) = fraction of the kernel
OverlapLike: TypeAlias = int | float | Sequence[int | float]


def axis_count(size: int, kernel: int, stride: int, edge: Edge) -> int:
    """Number of windows along one axis.

    ``"pad"``: ceil((size - kernel) / stride) + 1, at least 1, and never a window that lies
    wholly outside (which that formula alone would give when the stride exceeds the kernel).
    ``"shift"``: the same formula; the last window is moved inside. ``"drop"``: only windows
    that lie inside, possibly none.
    """
    if edge == "drop":
        return (size - kernel) // stride + 1 if size >= kernel else 0
    if size <= kernel:
        return 1
    count = -(-(size - kernel) // stride) + 1
    return min(count, -(-size // stride)) if edge == "pad" else count


@dataclass(frozen=True, slots=True)
class WindowBlock:
    """A box of neighbouring windows, and the pixels that they need.

    `origins` are the first pixels of the windows along each axis, relative to
    ``region.origin``. `region` is the union of the windows, clipped to the image, and `extent`
    what they span with the padding at the far side of each axis. Not `regular` are blocks with
    a window that the edge policy "shift" moved: elsewhere neighbours are a stride apart.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    origins: tuple[tuple[int, ...], ...]
    region: Region
    extent: tuple[int, ...]
    regular: bool

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the windows lie in an array with one element per window of the grid."""
        return tuple(slice(a, a + n) for a, n in zip(self.start, self.shape, strict=True))

    @property
    def padding(self) -> tuple[int, ...]:
        """Pixels outside the image, at the far side of each axis."""
        return tuple(e - r for e, r in zip(self.extent, self.region.shape, strict=True))


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Positions of a sliding window over an image. Make it with `WindowGrid.of`.

    Parameters
    ----------
    shape : tuple of int
        Extent of the image along each spatial axis, in pixels.
    kernel_size : tuple of int
        Extent of a window.
    stride : tuple of int
        Distance between neighbouring windows.
    edge : {"pad", "shift", "drop"}
        What becomes of windows over the far border. "pad": they stay where the stride puts
        them, and the pixels outside are background; the grid is regular and covers the
        image. "shift": they are moved inside; a window larger than the image stays at the
        origin and is padded. "drop": they are left out, and the border is not covered.

    Notes
    -----
    With ``stride <= kernel_size``, "pad" and "shift" cover every pixel. With a larger
    stride, pixel ``p`` of an axis is left out under "pad" exactly when
    ``p % stride >= kernel_size``.

    Examples
    --------
    >>> grid = WindowGrid.of((1000, 150), 100)
    >>> grid.counts
    (10, 2)
    >>> grid.origin((9, 1))
    (900, 100)
    """

    shape: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    edge: Edge = "pad"

    def __post_init__(self) -> None:
        if self.edge not in get_args(Edge):
            raise UsageError(f"edge must be 'pad', 'shift' or 'drop', got {self.edge!r}")
        for name in ("shape", "kernel_size", "stride"):
            values = getattr(self, name)
            if len(values) != len(self.shape) or not values:
                raise GeometryError(
                    f"{name}={values} does not fit an image with {len(self.shape)} spatial "
                    f"axes, shape={self.shape}; give one value per axis"
                )
            if min(values) < 1:
                raise GeometryError(f"{name} must be at least 1 along every axis, got {values}")

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        kernel_size: PerAxis,
        *,
        stride: PerAxis | None = None,
        overlap: OverlapLike | None = None,
        edge: Edge = "pad",
    ) -> WindowGrid:
        """Make a grid from what users write; stride and overlap as in `stride_of`.

        `kernel_size` is one number for all axes, or one per axis in array order.
        """
        shape = tuple(int(s) for s in shape)
        kernel = per_axis(kernel_size, len(shape), "kernel_size")
        return cls(shape, kernel, stride_of(kernel, stride, overlap), edge)

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.shape)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of windows along each axis; (rows, columns) for a slide."""
        return tuple(
            axis_count(n, k, s, self.edge)
            for n, k, s in zip(self.shape, self.kernel_size, self.stride, strict=True)
        )

    def __len__(self) -> int:
        return math.prod(self.counts)

    @property
    def overlapping(self) -> bool:
        """Whether windows of the regular grid share pixels."""
        return any(s < k for s, k in zip(self.stride, self.kernel_size, strict=True))

    @property
    def phases(self) -> tuple[int, ...]:
        """Along each axis, every how many-th window of the regular grid shares no pixel."""
        return tuple(-(-k // s) for s, k in zip(self.stride, self.kernel_size, strict=True))

    def axis_origin(self, axis: int, i: int) -> int:
        """First pixel of window `i` along one axis."""
        origin = i * self.stride[axis]
        if self.edge == "shift":
            origin = min(origin, max(self.shape[axis] - self.kernel_size[axis], 0))
        return origin

    def origin(self, index: Sequence[int]) -> tuple[int, ...]:
        """First pixel of a window; a `GeometryError` when there is none."""
        counts = self.counts
        if len(index) != self.ndim or not all(
            0 <= i < n for i, n in zip(index, counts, strict=True)
        ):
            raise GeometryError(f"no window {tuple(index)} in a grid of {counts} windows")
        return tuple(self.axis_origin(axis, i) for axis, i in enumerate(index))

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Every window once, in C order: (index, origin)."""
        axes = [[self.axis_origin(axis, i) for i in range(n)] for axis, n in enumerate(self.counts)]
        ranges = [range(n) for n in self.counts]
        return zip(itertools.product(*ranges), itertools.product(*axes), strict=True)

    def box(self, start: Sequence[int], shape: Sequence[int]) -> WindowBlock:
        """The block of `shape` windows that begins at window `start`, inside the grid."""
        counts = self.counts
        if not all(
            a >= 0 and n > 0 and a + n <= c for a, n, c in zip(start, shape, counts, strict=True)
        ):
            raise GeometryError(
                f"windows {tuple(start)} + {tuple(shape)} are not in a grid of {counts} windows"
            )
        origins, first, clipped, extent = [], [], [], []
        regular = True
        for axis, (a, n) in enumerate(zip(start, shape, strict=True)):
            places = [self.axis_origin(axis, i) for i in range(a, a + n)]
            begin = places[0]
            stop = places[-1] + self.kernel_size[axis]
            regular &= n == 1 or places[-1] - begin == (n - 1) * self.stride[axis]
            origins.append(tuple(p - begin for p in places))
            first.append(begin)
            extent.append(stop - begin)
            clipped.append(min(stop, self.shape[axis]) - begin)
        return WindowBlock(
            start=tuple(int(a) for a in start),
            shape=tuple(int(n) for n in shape),
            origins=tuple(origins),
            region=Region(tuple(first), tuple(clipped)),
            extent=tuple(extent),
            regular=regular,
        )

    def block_counts(self, block_shape: Sequence[int]) -> tuple[int, ...]:
        """Number of blocks along each axis when the grid is cut into `block_shape` windows."""
        return tuple(-(-n // b) for n, b in zip(self.counts, block_shape, strict=True))

    def block(self, index: Sequence[int], block_shape: Sequence[int]) -> WindowBlock:
        """One block of the partition of the grid into `block_shape` windows."""
        start = [i * b for i, b in zip(index, block_shape, strict=True)]
        shape = [min(b, c - a) for a, b, c in zip(start, block_shape, self.counts, strict=True)]
        return self.box(start, shape)

    def around(
        self, block: WindowBlock, keep: Array | None
    ) -> tuple[WindowBlock, tuple[int, ...], Array | None]:
        """The smallest block around the kept windows of a block, so that no more is read.

        Also its first window, counted from that of the block given, and which of its windows
        are kept. None keeps all.
        """
        if keep is None or keep.all():
            return block, (0,) * self.ndim, None
        occupied = np.nonzero(keep)
        first = tuple(int(p.min()) for p in occupied)
        stop = tuple(int(p.max()) + 1 for p in occupied)
        start = [a + f for a, f in zip(block.start, first, strict=True)]
        inner = self.box(start, [b - a for a, b in zip(first, stop, strict=True)])
        kept = keep[tuple(slice(a, b) for a, b in zip(first, stop, strict=True))]
        return inner, first, None if kept.all() else kept

    def blocks(self, block_shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], WindowBlock]]:
        """Every block of the partition once, in C order: (block index, block)."""
        for index in itertools.product(*(range(n) for n in self.block_counts(block_shape))):
            yield index, self.block(index, block_shape)


def per_axis(value: PerAxis, ndim: int, name: str) -> tuple[int, ...]:
    """One integer per axis, from one integer for all or a sequence."""
    values = _each(value, ndim, name)
    if any(isinstance(v, (bool, np.bool_)) or not math.isfinite(v) or int(v) != v for v in values):
        raise GeometryError(f"{name} must be whole pixels, got {value!r}")
    return tuple(int(v) for v in values)


def _each(value: Any, ndim: int, name: str) -> tuple[Any, ...]:
    """One number per axis, from one for all or a sequence; NumPy's are as good as Python's."""
    values = (value,) * ndim if isinstance(value, numbers.Number) else value
    if isinstance(values, np.ndarray):
        values = (values.item(),) * ndim if values.ndim == 0 else values.tolist()
    if not isinstance(values, Sequence) or not all(isinstance(v, numbers.Real) for v in values):
        raise GeometryError(
            f"{name} must be one number, or one per axis in array order (y, x) or (z, y, x), "
            f"got {value!r}"
        )
    if len(values) != ndim:
        raise GeometryError(
            f"{name}={value!r} has {len(values)} values for {ndim} spatial axes; "
            "give one number, or one per axis in array order (y, x) or (z, y, x)"
        )
    return tuple(values)


def spatial_axes(kernel_size: PerAxis) -> int:
    """How many axes are space: as many as `kernel_size` has numbers, two for a single one."""
    if isinstance(kernel_size, (Sequence, np.ndarray)) and np.ndim(kernel_size):
        return len(kernel_size)
    return 2


def stride_of(
    kernel: tuple[int, ...],
    stride: PerAxis | None = None,
    overlap: OverlapLike | None = None,
) -> tuple[int, ...]:
    """Distance between neighbouring windows along each axis, from what users write.

    The one rule for all functions: a fraction gives ``max(int(kernel * (1 - overlap)), 1)``
    in double precision, as MONAI's sliding-window inference has it, so that the same numbers
    mean the same windows there. Fractions of lower precision count as the decimals that
    they print as.

    Parameters
    ----------
    kernel : tuple of int
        Extent of a window in pixels.
    stride : int or sequence of int, optional
        The stride itself. Default: the kernel.
    overlap : int, float or sequence, optional
        Instead of it: int = pixels, float in [0, 1) = fraction of the kernel.

    Examples
    --------
    >>> stride_of((10, 10), overlap=0.25)
    (7, 7)
    """
    if stride is not None and overlap is not None:
        raise UsageError(
            f"stride={stride!r} and overlap={overlap!r} say the same thing; give one of them"
        )
    if stride is not None:
        return per_axis(stride, len(kernel), "stride")
    if overlap is None:
        return kernel
    return tuple(
        _step(k, value)
        for k, value in zip(kernel, _each(overlap, len(kernel), "overlap"), strict=True)
    )


def _step(kernel: int, overlap: Any) -> int:
    whole = isinstance(overlap, numbers.Integral)
    share = float(str(overlap)) if isinstance(overlap, np.floating) else float(overlap)
    if not (math.isfinite(share) and 0 <= share < (kernel if whole else 1)):
        raise GeometryError(
            f"overlap={overlap!r} does not fit a kernel of {kernel} pixels: give pixels "
            f"(int, 0 to {kernel - 1}) or a fraction (float in [0, 1))"
        )
    return kernel - int(overlap) if whole else max(int(kernel * (1 - share)), 1)
