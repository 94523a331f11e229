"""Differentiable Siamese Augmentation (DSA, Zhao & Bilen 2021, arXiv 2102.08259), one operation per batch.

A call draws one of six operations for the whole batch and its strength per image. With u uniform in [0, 1):

=======  ===================================================================================================
color    x + (u - 1/2), then (x - m)(2u) + m with m the mean over channels, then (x - M)(u + 1/2) + M with M
         the mean over the image; three independent u
crop     x shifted by whole pixels in [-s, s] along height and width, s = int(size / 8 + 1/2), zeros shifted in
cutout   a square of int(size / 2 + 1/2) pixels around a uniform centre set to zero
flip     mirrored left to right with probability 1/2
scale    zoom by independent factors in [1/1.2, 1.2] along width and height, bilinear, zeros outside
rotate   by an angle in [-15, 15] degrees, bilinear, zeros outside
=======  ===================================================================================================

Every operation is affine in x, so gradients with respect to the images are exact and need no stored draw beyond
its few numbers. Drawing (:meth:`DSA.draw`) and applying (:meth:`DSA.apply`) are separate: a :class:`DSADraw` can be
used for several batches, or handed to a kernel.

On a CUDA device the gradient of `scale` and `rotate` goes through `grid_sample`, whose backward adds with
atomics: equal up to rounding from run to run, not bit for bit. On the CPU everything is bitwise repeatable.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, InputError, nearest
from ..runtime.device import sent
from ..runtime.rng import generator as named_generator

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
MODES = ("fast", "reference")

_SHIFT = 0.125  # largest crop shift, as a part of the image side
_CUTOUT = 0.5  # side of the cut-out square, as a part of the image side
_ZOOM = 1.2
_DEGREES = 15.0
_ANGLE = math.radians(_DEGREES)
# The same under the names that published scripts use; "S" is one operation per batch.
_PUBLISHED = {
    "aug_mode": "S",
    "prob_flip": 0.5,
    "ratio_scale": _ZOOM,
    "ratio_rotate": _DEGREES,
    "ratio_crop_pad": _SHIFT,
    "ratio_cutout": _CUTOUT,
    "brightness": 1.0,
    "saturation": 2.0,
    "contrast": 0.5,
}


@dataclass(frozen=True, eq=False)
class DSADraw:
    """One augmentation of a batch: an operation and its numbers.

    Attributes:
        operation: one of :data:`OPERATIONS`, or "none".
        values: `[N, k]`, or `[1, k]` for one draw shared by the batch; float32 unless drawn for images of another
            dtype. Columns: color (brightness, saturation, contrast); crop (pixel shift along height, along width):
            output[i, j] = input[i + first, j + second]; cutout (centre row, centre column): rows from
            centre - side // 2; flip (1 keeps, 0 mirrors); scale (factor on the width coordinate, on the height
            coordinate); rotate (radians).
    """

    operation: str
    values: Tensor


class DSA:
    """Differentiable augmentation of image batches, one operation drawn per call.

    Args:
        strategy: operations joined by "_", each at most once; "none" or "" is the identity.
        mode: "fast" draws all numbers of a call at once; "reference" draws in the order of the published code, so
            that the same seed gives the same images. Both have the same distribution.
        siamese: one draw shared by all images of a batch.

    Raises:
        ConfigError: unknown operation, repeated operation or unknown mode.

    Example:
        >>> augment = DSA("color_crop_scale_rotate")
        >>> images = torch.rand(4, 1, 8, 8)
        >>> augment(images, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([4, 1, 8, 8])
        >>> step = augment.seeded(7)
        >>> torch.equal(step(images, 3), step(images, 3))
        True
    """

    def __init__(
        self,
        strategy: str = "color_crop_cutout_flip_scale_rotate",
        *,
        mode: str = "fast",
        siamese: bool = False,
    ) -> None:
        self.operations = _parse(strategy)
        if mode not in MODES:
            raise ConfigError(f"DSA mode {mode!r} is unknown; use one of {', '.join(MODES)}.{nearest(mode, MODES)}")
        self.mode = mode
        self.siamese = bool(siamese)

    @property
    def strategy(self) -> str:
        """The operations joined by "_", or "none"."""
        return "_".join(self.operations) or "none"

    def __repr__(self) -> str:
        return f"DSA({self.strategy!r}, mode={self.mode!r}, siamese={self.siamese})"

    @classmethod
    def from_reference(cls, strategy: str, param: object = None) -> DSA:
        """The augmentation that published scripts call as `DiffAugment(x, strategy, param=param)`.

        On a CPU it draws the same numbers, per image, from torch's default generator.

        Args:
            strategy: `args.dsa_strategy`.
            param: `args.dsa_param`, whose numbers must be the published ones; None stands for these.

        Raises:
            ConfigError: a number that is not, or an unknown strategy.

        Example:
            >>> DSA.from_reference("color_crop_cutout_flip_scale_rotate")
            DSA('color_crop_cutout_flip_scale_rotate', mode='reference', siamese=False)
        """
        for name, published in _PUBLISHED.items():
            value = getattr(param, name, published)
            if value != published:
                raise ConfigError(
                    f"{name} of the augmentation's parameters is {value!r}, and here it is {published!r}; "
                    "pass a function that calls your own augmentation instead"
                )
        return cls(strategy, mode="reference")

    def __call__(
        self,
        images: Tensor,
        step: int | None = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw and apply.

        Args:
            images: floating point `[N, C, H, W]`, any device, any memory layout.
            step: not looked at; :func:`pad_fast.trajectory_matching_loss` gives it to any augmentation.
            generator: source of the draw; the default CPU generator when neither it nor `seed` is given.
            seed: makes the draw a function of this number alone and leaves every generator untouched. In
                reference mode each single draw of the call re-seeds with `seed`, `seed + 1`, ..., which is how
                the published siamese code works.

        Returns:
            A contiguous tensor of the images' shape, dtype and device, differentiable with respect to them.

        Raises:
            InputError: images are not a floating point `[N, C, H, W]` tensor, or both sources are given.
        """
        _check_images(images)
        count, shape = images.shape[0], images.shape[1:]
        return self.apply(images, self.draw(count, shape, generator=generator, seed=seed, dtype=images.dtype))

    def seeded(self, seed: int) -> SeededDSA:
        """An augmentation `(images, step) -> images` whose draw is a pure function of `(seed, step)`.

        An unrolled training run evaluates every step twice, once forward and once in reverse; both see the same
        augmentation.
        """
        return SeededDSA(self, int(seed))

    def draw(
        self,
        n: int,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> DSADraw:
        """Draw an operation and its numbers for `n` images whose shape ends in `(height, width)`.

        The numbers lie on the generator's device (the CPU by default); `apply` moves them to the images. In reference
        mode those of "color" are drawn in the images' `dtype`, as the published code does.
        """
        if generator is not None and seed is not None:
            raise InputError("DSA takes a generator or a seed, not both; drop one of them.")
        if not self.operations:
            return DSADraw("none", torch.empty(1, 0))
        height, width = int(shape[-2]), int(shape[-1])
        if self.mode == "reference":
            return self._draw_reference(n, height, width, _reference_sources(generator, seed), dtype)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
        operation = self._choose(generator)
        device = generator.device if generator is not None else torch.device("cpu")
        low, span, whole = value_ranges(operation, height, width, device)
        values = torch.rand(1 if self.siamese else n, low.numel(), generator=generator, device=device).mul_(span)
        # u is a multiple of 2^-24 below 1, so u * span stays below span and floor inside the range.
        return DSADraw(operation, (values.floor_() if whole else values).add_(low))

    @staticmethod
    def apply(images: Tensor, draw: DSADraw) -> Tensor:
        """Apply a draw to `images` `[N, C, H, W]`; a draw of one row serves every image.

        Raises:
            InputError: wrong images, or a draw made for another number of images.
        """
        _check_images(images)
        if draw.operation == "none":
            return images.contiguous()
        rows = draw.values.shape[0]
        if rows not in (1, images.shape[0]):
            raise InputError(
                f"this DSA draw is for {rows} images, the batch has {images.shape[0]}; "
                "draw for the batch's size, or siamese (one row) for any size."
            )
        # Coordinates in half precision would be off by whole pixels, so those types compute in float32.
        working = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        values = sent(draw.values, images.device).to(working.dtype)
        return _APPLY[draw.operation](working, values).to(images.dtype).contiguous()

    def _choose(self, generator: torch.Generator | None) -> str:
        device = generator.device if generator is not None else None
        return self.operations[int(torch.randint(0, len(self.operations), (1,), generator=generator, device=device))]

    def _draw_reference(
        self, n: int, height: int, width: int, source: Callable[[], torch.Generator | None], dtype: torch.dtype
    ) -> DSADraw:
        operation = self._choose(source())
        low, span, whole = value_ranges(operation, height, width, torch.device("cpu"))
        columns = []
        for start, size in zip(low.tolist(), span.tolist(), strict=True):
            generator = source()
            device = generator.device if generator is not None else None
            if operation in ("crop", "cutout"):
                first, last = int(start), int(start + size)
                column = torch.randint(first, last, (n,), generator=generator, device=device).float()
            else:
                drawn = dtype if operation == "color" else None
                column = torch.rand(n, generator=generator, device=device, dtype=drawn)
                if operation == "rotate":  # rounded as the published code rounds it
                    column = (column - 0.5) * 2 * _DEGREES / 180 * math.pi
                else:
                    column = column * size
                    column = (column.floor() if whole else column) + start
            columns.append(column)
        values = torch.stack(columns, dim=1)
        return DSADraw(operation, values[:1] if self.siamese else values)


@dataclass(frozen=True, eq=False)
class SeededDSA:
    """`(images, step) -> images` with a draw that depends on `(seed, step)` only; see :meth:`DSA.seeded`.

    Attributes:
        parts: where the images given are a part of every batch: for each step, how many images its whole batch has, and
            which of them is the first one given. They are augmented as they would be in the whole batch.
    """

    augmentation: DSA
    seed: int
    parts: Sequence[tuple[int, int]] | None = None

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Augment the batch of student step `step`."""
        _check_images(images)
        return self.augmentation.apply(images, self.draw(images.shape[0], images.shape[1:], step))

    def draw(self, n: int, shape: Sequence[int], step: int) -> DSADraw:
        """The draw that `step` uses for `n` images of that shape."""
        whole, first = self.place(n, step)
        draw = self.augmentation.draw(whole, shape, generator=named_generator(self.seed, "dsa", int(step)))
        return draw if draw.values.shape[0] == 1 else DSADraw(draw.operation, draw.values[first : first + n])

    def place(self, n: int, step: int) -> tuple[int, int]:
        """Size of the whole batch of `step`, and the place in it where the `n` given images begin."""
        return (n, 0) if self.parts is None else self.parts[step]


def _parse(strategy: str) -> tuple[str, ...]:
    if strategy.lower() in ("", "none"):
        return ()
    operations = tuple(strategy.lower().split("_"))
    for position, operation in enumerate(operations):
        if operation not in OPERATIONS:
            raise ConfigError(
                f"DSA strategy {strategy!r}: operation {operation!r} is unknown; "
                f"join some of {', '.join(OPERATIONS)} with '_', or use 'none'.{nearest(operation, OPERATIONS)}"
            )
        if operation in operations[:position]:
            raise ConfigError(f"DSA strategy {strategy!r} names {operation!r} twice; name each operation once.")
    return operations


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        what = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"DSA needs floating point images [N, C, H, W], got {what}.")


def _reference_sources(generator: torch.Generator | None, seed: int | None) -> Callable[[], torch.Generator | None]:
    """The generator for each successive draw: the same one, or a fresh one per draw with the next seed."""
    if seed is None:
        return lambda: generator
    seeds = iter(range(seed, seed + 4))  # the operation and at most three columns
    return lambda: torch.Generator().manual_seed(next(seeds))


@functools.lru_cache(maxsize=64)
def value_ranges(operation: str, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, bool]:
    """Range of each column of a draw: `low + span * u`, or `low + floor(span * u)` for whole numbers."""
    low: tuple[float, ...]
    span: tuple[float, ...]
    whole = operation in ("crop", "cutout", "flip")
    if operation == "color":
        low, span = (-0.5, 0.0, 0.5), (1.0, 2.0, 1.0)
    elif operation == "crop":
        shifts = [int(side * _SHIFT + 0.5) for side in (height, width)]
        low, span = tuple(-s for s in shifts), tuple(2 * s + 1 for s in shifts)
    elif operation == "cutout":
        # An even square has its centre between pixels, hence one more place for it.
        low, span = (0.0, 0.0), tuple(side + 1 - cutout_side(side) % 2 for side in (height, width))
    elif operation == "flip":
        low, span = (0.0,), (2.0,)
    elif operation == "scale":
        low, span = (1 / _ZOOM,) * 2, (_ZOOM - 1 / _ZOOM,) * 2
    else:
        low, span = (-_ANGLE,), (2 * _ANGLE,)
    with torch.inference_mode(False):  # cached: must stay usable in autograd if first built in inference mode
        return (
            torch.tensor(low, dtype=torch.float32, device=device),
            torch.tensor(span, dtype=torch.float32, device=device),
            whole,
        )


def cutout_side(side: int) -> int:
    """Side of the square that cutout clears along an image side of `side` pixels."""
    return int(side * _CUTOUT + 0.5)


@functools.lru_cache(maxsize=16)
def _grid(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sampling positions (x, y) in [-1, 1] `[1, H, W, 2]`, the same turned a quarter, and the pixel pitch `[2]`."""
    with torch.inference_mode(False):
        rows = torch.linspace(-1, 1, height, dtype=torch.float64) if height > 1 else torch.zeros(1)
        columns = torch.linspace(-1, 1, width, dtype=torch.float64) if width > 1 else torch.zeros(1)
        y, x = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
        pitch = torch.tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)])
        positions, turned = torch.stack([x, y], dim=-1), torch.stack([-y, x], dim=-1)
        return (
            positions[None].to(device=device, dtype=dtype),
            turned[None].to(device=device, dtype=dtype),
            pitch.to(device=device, dtype=dtype),
        )


@functools.lru_cache(maxsize=16)
def _cutout_lines(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel positions `[2, max(H, W)]` relative to the centre's convention, and half the square's sides `[2, 1]`."""
    with torch.inference_mode(False):
        sides = torch.tensor([cutout_side(height), cutout_side(width)], dtype=torch.float64)[:, None]
        positions = torch.arange(max(height, width), dtype=torch.float64) + (1 - sides % 2) / 2
        return positions.to(device=device, dtype=dtype), (sides / 2).to(device=device, dtype=dtype)


def _per_image(values: Tensor) -> tuple[Tensor, ...]:
    return values[:, :, None, None, None].unbind(1)  # k of [N, 1, 1, 1]


def _sample(images: Tensor, grid: Tensor, interpolation: str) -> Tensor:
    return F.grid_sample(images, grid.expand(images.shape[0], -1, -1, -1), mode=interpolation, align_corners=True)


def _color(images: Tensor, values: Tensor) -> Tensor:
    # The three maps in one: with m the channel mean and M the image mean of the input,
    # s k x + (1 - s) k m + (1 - k) M + b. One channel is its own channel mean, so s drops out.
    brightness, saturation, contrast = _per_image(values)
    if images.shape[1] == 1:
        offset = torch.addcmul(brightness, 1 - contrast, images.mean((1, 2, 3), keepdim=True))
        return torch.addcmul(offset, contrast, images)
    gray = images.mean(1, keepdim=True)  # [N, 1, H, W]
    gain = saturation * contrast
    offset = torch.addcmul(brightness, 1 - contrast, gray.mean((2, 3), keepdim=True))  # [N, 1, 1, 1]
    offset = torch.addcmul(offset, contrast - gain, gray)  # [N, 1, H, W]
    return torch.addcmul(offset, gain, images)


def _crop(images: Tensor, values: Tensor) -> Tensor:
    # Nearest-neighbour sampling at whole-pixel shifts copies pixels exactly and beats gather on the CPU.
    grid, _, pitch = _grid(images.shape[2], images.shape[3], images.dtype, images.device)
    return _sample(images, grid + (values.flip(1) * pitch)[:, None, None, :], "nearest")


def _cutout(images: Tensor, values: Tensor) -> Tensor:
    height, width = images.shape[2:]
    positions, half = _cutout_lines(height, width, images.dtype, images.device)
    rows, columns = ((positions - values[:, :, None]).abs_() < half).unbind(1)  # [N, max(H, W)] each
    hole = rows[:, None, :height, None] & columns[:, None, None, :width]  # [N, 1, H, W]
    return torch.where(hole, 0.0, images)


def _flip(images: Tensor, values: Tensor) -> Tensor:
    return torch.where(values[:, :, None, None] > 0, images, images.flip(3))


def _scale(images: Tensor, values: Tensor) -> Tensor:
    grid, _, _ = _grid(images.shape[2], images.shape[3], images.dtype, images.device)
    return _sample(images, grid * values[:, None, None, :], "bilinear")


def _rotate(images: Tensor, values: Tensor) -> Tensor:
    grid, turned, _ = _grid(images.shape[2], images.shape[3], images.dtype, images.device)
    angle = values[:, :, None, None]  # [N, 1, 1, 1]
    return _sample(images, torch.addcmul(grid * angle.cos(), turned, angle.sin()), "bilinear")


_APPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
