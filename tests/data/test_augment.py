"""DSA: the published outputs, a per-pixel oracle, gradients, and the draws' distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pad_fast.data.augment import DSA, MODES, OPERATIONS, DSADraw, _cutout_lines, _grid, value_ranges
from pad_fast.errors import ConfigError, InputError

Golden = Callable[[str], dict[str, np.ndarray]]
ALL = "_".join(OPERATIONS)


def seeded_rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded_rng(seed), dtype=dtype) * 1.5 - 0.25


def drawn(operation: str, n: int, shape: tuple[int, ...], *, mode: str = "fast", seed: int = 1) -> DSADraw:
    return DSA(operation, mode=mode).draw(n, shape, generator=seeded_rng(seed))


# ---------------------------------------------------------------- published outputs


@pytest.mark.parametrize("file", ["dsa_rgb32.npz", "dsa_gray28.npz"])
@pytest.mark.parametrize("from_default_generator", [True, False])
def test_reference_mode_reproduces_published_outputs(golden: Golden, file: str, from_default_generator: bool) -> None:
    data = golden(file)
    images = torch.from_numpy(data["x"])
    cases = [key for key in data if "_seed" in key]
    assert len(cases) == 20
    chosen = set()
    for key in cases:
        name, seed = key.split("_seed")
        augment = DSA(ALL if name == "all" else name, mode="reference")
        if from_default_generator:
            torch.manual_seed(int(seed))
            out = augment(images)
        else:
            out = augment(images, generator=seeded_rng(int(seed)))
        assert not torch.equal(out, images)
        # Worst seen: 3.3e-6 (rotate).
        np.testing.assert_allclose(out.numpy(), data[key], rtol=0, atol=1e-5, err_msg=key)
        if name == "all":
            drawing = augment.draw(len(images), images.shape, generator=seeded_rng(int(seed)))
            chosen.add(drawing.operation)
    assert len(chosen) >= 5  # the choice of the operation is covered, not one operation many times


@pytest.mark.parametrize("file", ["dsa_rgb32.npz", "dsa_gray28.npz"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_reference_siamese_reseeds_each_draw(golden: Golden, file: str, operation: str) -> None:
    data = golden(file)
    images = torch.from_numpy(data["x"])
    state = torch.random.get_rng_state()
    out = DSA(operation, mode="reference", siamese=True)(images, seed=11)
    np.testing.assert_allclose(out.numpy(), data[f"{operation}_siamese11"], rtol=0, atol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------- oracle, pixel by pixel


def oracle(image: Tensor, operation: str, values: list[float]) -> Tensor:
    """One image `[C, H, W]`, straight from the definitions."""
    channels, height, width = image.shape
    if operation == "color":
        brightness, saturation, contrast = values
        image = image + brightness
        gray = image.mean(0, keepdim=True)
        image = (image - gray) * saturation + gray
        return (image - image.mean()) * contrast + image.mean()
    if operation == "flip":
        return image if values[0] else torch.stack(list(image.unbind(2))[::-1], dim=2)
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if operation == "crop":
                y, x = row + values[0], column + values[1]
            elif operation == "cutout":
                tall, wide = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
                top, left = values[0] - tall // 2, values[1] - wide // 2
                if not (top <= row < top + tall and left <= column < left + wide):
                    out[:, row, column] = image[:, row, column]
                continue
            else:
                # Coordinates in [-1, 1] whose corners are the corner pixels' centres.
                u, v = 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1
                if operation == "scale":
                    u, v = values[0] * u, values[1] * v
                else:
                    sine, cosine = math.sin(values[0]), math.cos(values[0])
                    u, v = cosine * u - sine * v, sine * u + cosine * v
                y, x = (v + 1) * (height - 1) / 2, (u + 1) * (width - 1) / 2
            for i in range(height):
                for j in range(width):
                    weight = max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))
                    if weight:
                        out[:, row, column] += weight * image[:, i, j]
    return out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 9, 9), (2, 17, 7, 7), (3, 3, 6, 11), (2, 1, 10, 5)], ids=str)
def test_apply_equals_the_definition(operation: str, shape: tuple[int, ...]) -> None:
    images = some_images(*shape)
    draw = drawn(operation, shape[0], shape)
    out = DSA.apply(images, draw)
    expected = torch.stack(
        [oracle(image, operation, row) for image, row in zip(images, draw.values.double().tolist(), strict=True)]
    )
    assert out.dtype == images.dtype and out.shape == images.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centre", [0, 4, 8])
def test_cutout_is_clipped_at_the_border(centre: int) -> None:
    draw = DSADraw("cutout", torch.tensor([[float(centre), 4.0]]))
    kept = DSA.apply(torch.ones(1, 1, 8, 8), draw)[0, 0]
    expected = torch.ones(8, 8)
    expected[max(centre - 2, 0) : centre + 2, 2:6] = 0
    assert torch.equal(kept, expected)


# ---------------------------------------------------------------- gradients and algebra


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradcheck(operation: str, mode: str, channels: int) -> None:
    images = some_images(3, channels, 6, 6).requires_grad_()
    draw = drawn(operation, 3, (channels, 6, 6), mode=mode, seed=3)
    assert torch.autograd.gradcheck(lambda x: DSA.apply(x, draw), (images,))
    assert torch.autograd.gradgradcheck(lambda x: DSA.apply(x, draw), (images,))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("siamese", [False, True])
def test_affine_in_the_images(operation: str, siamese: bool) -> None:
    x, y, z = (some_images(5, 3, 12, 12, seed=seed) for seed in range(3))
    augment = DSA(operation, siamese=siamese)
    draw = augment.draw(5, x.shape, generator=seeded_rng(4))
    combined = DSA.apply(0.3 * x + 0.9 * y - 0.2 * z, draw)
    parts = 0.3 * DSA.apply(x, draw) + 0.9 * DSA.apply(y, draw) - 0.2 * DSA.apply(z, draw)
    torch.testing.assert_close(combined, parts, rtol=0, atol=1e-12)
    zero = DSA.apply(torch.zeros_like(x), draw)
    assert bool((zero == 0).all()) == (operation != "color")  # only brightness moves a black image


@pytest.mark.parametrize("operation", OPERATIONS)
def test_backward_is_the_transpose(operation: str) -> None:
    images = some_images(6, 3, 32, 32).requires_grad_()
    draw = drawn(operation, 6, images.shape, seed=5)
    out = DSA.apply(images, draw)
    cotangent, tangent = some_images(*out.shape, seed=6), some_images(*out.shape, seed=7)
    (pulled,) = torch.autograd.grad(out, images, cotangent)
    pushed = DSA.apply(tangent, draw) - DSA.apply(torch.zeros_like(tangent), draw)
    left, right = (pushed * cotangent).sum(), (tangent * pulled).sum()
    assert pulled.count_nonzero() > 0.5 * pulled.numel()
    assert abs(float(left - right)) < 1e-9 * abs(float(left))


# ---------------------------------------------------------------- distributions


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 28, 13)], ids=str)
def test_fast_draws_have_the_reference_distribution(operation: str, shape: tuple[int, ...]) -> None:
    n = 20_000
    fast = drawn(operation, n, shape, mode="fast").values
    reference = drawn(operation, n, shape, mode="reference", seed=2).values
    assert fast.shape == reference.shape and fast.dtype == torch.float32
    limit = 1.63 * math.sqrt(2 / n)  # Kolmogorov-Smirnov, 1%; the seeds are fixed
    for column in range(fast.shape[1]):
        a, b = fast[:, column].double(), reference[:, column].double()
        points = torch.cat([a, b]).unique()
        distance = (
            torch.searchsorted(a.sort().values, points, right=True)
            - torch.searchsorted(b.sort().values, points, right=True)
        ).abs().max() / n
        assert float(distance) < limit
        if operation in ("crop", "cutout", "flip"):
            assert torch.equal(a.unique(), b.unique())  # every whole number occurs, none outside
    if fast.shape[1] > 1:
        # Columns are independent of each other.
        assert float((torch.corrcoef(fast.T) - torch.eye(fast.shape[1])).abs().max()) < 4 / math.sqrt(n)


@pytest.mark.parametrize(
    ("operation", "low", "high"),
    [
        ("color", [-0.5, 0.0, 0.5], [0.5, 2.0, 1.5]),
        ("crop", [-4, -4], [4, 4]),
        ("cutout", [0, 0], [32, 32]),
        ("flip", [0], [1]),
        ("scale", [1 / 1.2] * 2, [1.2] * 2),
        ("rotate", [-math.pi / 12], [math.pi / 12]),
    ],
)
def test_ranges_at_32_pixels(operation: str, low: list[float], high: list[float]) -> None:
    values = drawn(operation, 20_000, (3, 32, 32)).values
    width = torch.tensor(high) - torch.tensor(low)
    assert bool(((values.min(0).values - torch.tensor(low)).abs() <= 1e-3 * width).all())
    assert bool(((values.max(0).values - torch.tensor(high)).abs() <= 1e-3 * width).all())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_output_moments_agree_between_modes(operation: str) -> None:
    n = 40_000
    image = some_images(1, 3, 8, 8).expand(n, -1, -1, -1)
    fast = DSA.apply(image, drawn(operation, n, image.shape))
    reference = DSA.apply(image, drawn(operation, n, image.shape, mode="reference", seed=2))
    for power in (1, 2):
        a, b = fast**power, reference**power
        error = ((a.var(0) + b.var(0)) / n).sqrt() + 1e-9
        assert float(((a.mean(0) - b.mean(0)).abs() / error).max()) < 5
        assert float(a.var(0).max()) > 0


@pytest.mark.parametrize("mode", MODES)
def test_operations_are_chosen_uniformly(mode: str) -> None:
    augment, rng, n = DSA("crop_flip_rotate", mode=mode), seeded_rng(0), 3000
    names = [augment.draw(1, (1, 8, 8), generator=rng).operation for _ in range(n)]
    for operation in augment.operations:
        assert abs(names.count(operation) / n - 1 / 3) < 4 * math.sqrt(2 / 9 / n)


# ---------------------------------------------------------------- siamese, seeds, generators


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("mode", MODES)
def test_siamese_shares_one_draw(operation: str, mode: str) -> None:
    image = some_images(1, 3, 16, 16)
    augment = DSA(operation, mode=mode, siamese=True)
    out = augment(image.expand(7, -1, -1, -1), seed=5)
    for other in out[1:]:
        assert torch.equal(out[0], other)
    # The same seed gives batches of other sizes the same draw: real and synthetic images of one step.
    torch.testing.assert_close(augment(image.expand(3, -1, -1, -1), seed=5)[0], out[0], rtol=0, atol=1e-12)
    apart = DSA(operation, mode=mode)(image.expand(32, -1, -1, -1), seed=5)
    assert not all(torch.equal(apart[0], other) for other in apart[1:])


@pytest.mark.parametrize("mode", MODES)
def test_seeded_is_a_function_of_seed_and_step(mode: str) -> None:
    images = some_images(9, 3, 8, 8)
    augment = DSA(mode=mode)
    step = augment.seeded(3)
    state = torch.random.get_rng_state()
    forward = [step(images, index) for index in range(12)]
    for index in reversed(range(12)):  # the reverse pass visits the steps in the other order
        assert torch.equal(step(images, index), forward[index])
        assert step.draw(9, images.shape, index).operation in OPERATIONS
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len({step.draw(9, images.shape, index).operation for index in range(12)}) > 2
    again = DSA(mode=mode).seeded(3)
    assert all(torch.equal(again(images, index), forward[index]) for index in (0, 7))
    other = augment.seeded(4)
    assert not all(torch.equal(other(images, index), forward[index]) for index in range(12))


@pytest.mark.parametrize("mode", MODES)
def test_generator_is_the_only_source(mode: str) -> None:
    images = some_images(4, 1, 8, 8)
    augment = DSA(mode=mode)
    state = torch.random.get_rng_state()
    first = [augment(images, generator=rng) for rng in [seeded_rng(8)] for _ in range(6)]
    assert torch.equal(torch.random.get_rng_state(), state)
    rng = seeded_rng(8)
    assert all(torch.equal(augment(images, generator=rng), out) for out in first)
    torch.manual_seed(8)
    assert all(torch.equal(augment(images), out) for out in first)


# ---------------------------------------------------------------- layouts and types


@pytest.mark.parametrize("operation", OPERATIONS)
def test_layouts(operation: str) -> None:
    images = some_images(4, 3, 8, 8)
    draw = drawn(operation, 4, images.shape)
    expected = DSA.apply(images, draw)
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    padded = torch.zeros(8, 3, 8, 9, dtype=images.dtype)
    padded[::2, :, :, :8] = images
    for variant in (
        images.to(memory_format=torch.channels_last),
        transposed,
        padded[::2, :, :, :8],
    ):
        before = variant.clone()
        out = DSA.apply(variant, draw)
        assert out.is_contiguous()
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        assert torch.equal(variant, before)  # the caller's images are not touched


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str
)
def test_dtypes(operation: str, dtype: torch.dtype, tolerance: float) -> None:
    images = some_images(3, 3, 16, 16).to(dtype)
    draw = drawn(operation, 3, images.shape)
    out = DSA.apply(images, draw)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), DSA.apply(images.double(), draw), rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_batch_of_one_and_tiny_images(mode: str, operation: str) -> None:
    for shape in [(1, 1, 8, 8), (1, 3, 1, 1), (2, 1, 2, 2)]:
        out = DSA(operation, mode=mode)(some_images(*shape), seed=0)
        assert out.shape == shape and bool(torch.isfinite(out).all())


def test_caches_filled_in_inference_mode_serve_training() -> None:
    for cache in (value_ranges, _cutout_lines, _grid):
        cache.cache_clear()
    images = some_images(2, 3, 8, 8)
    with torch.inference_mode():
        for operation in OPERATIONS:
            DSA(operation)(images, seed=0)
    images.requires_grad_()
    for operation in OPERATIONS:
        DSA(operation)(images, seed=0).sum().backward()
    assert images.grad is not None and images.grad.count_nonzero() > 0


# ---------------------------------------------------------------- settings and errors


@pytest.mark.parametrize("strategy", ["none", "None", ""])
def test_identity(strategy: str) -> None:
    images = some_images(3, 3, 8, 8)
    rng = seeded_rng(0)
    state = rng.get_state()
    augment = DSA(strategy)
    assert torch.equal(augment(images, generator=rng), images)
    assert torch.equal(augment.seeded(0)(images, 5), images)
    assert torch.equal(rng.get_state(), state)
    assert augment.strategy == "none" and augment.operations == ()


def test_repr_and_case() -> None:
    assert repr(DSA("Color_CROP", siamese=True)) == "DSA('color_crop', mode='fast', siamese=True)"


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("color_crp", "Did you mean 'crop'"),
        ("color_crop_color", "'color' twice"),
        ("color__crop", "operation '' is unknown"),
        ("gamma", "color, crop, cutout, flip, scale, rotate"),
    ],
)
def test_unusable_strategies(strategy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DSA(strategy)


def test_unknown_mode() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reference'"):
        DSA(mode="referense")


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8, dtype=torch.uint8), [1.0]], ids=["3d", "uint8", "list"]
)
def test_unusable_images(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"floating point images \[N, C, H, W\]"):
        DSA()(images)


def test_draw_for_another_batch_size() -> None:
    draw = drawn("crop", 4, (3, 8, 8))
    with pytest.raises(InputError, match="for 4 images, the batch has 5"):
        DSA.apply(some_images(5, 3, 8, 8), draw)


def test_generator_and_seed_exclude_each_other() -> None:
    with pytest.raises(InputError, match="not both"):
        DSA()(some_images(1, 1, 8, 8), generator=seeded_rng(0), seed=0)
