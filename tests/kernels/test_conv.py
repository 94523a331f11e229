"""Batched convolutions: the kernels and the cuDNN route against their naive twins, and those against torch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed, so there are no kernels to run")

from pad_fast.errors import InputError
from pad_fast.kernels import conv
from pad_fast.kernels.conv import Layer, Weights, launches, operations, tiles
from pad_fast.kernels.launch import TARGETS, counting, dry_run

from ..support.comparison import describe_difference, relative_error

pytestmark = pytest.mark.usefixtures("poisoned")

# K, B, H, W, I, O
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 1, 5, 7, 3, 17),
    (2, 1, 8, 8, 16, 16),
    (3, 2, 5, 6, 17, 5),
    (1, 7, 3, 3, 33, 40),
    (2, 2, 8, 5, 20, 3),
]
REAL = [
    (1, 10, 16, 16, 128, 128),
    (1, 10, 8, 8, 128, 128),
    (3, 10, 8, 8, 128, 128),
    (1, 100, 16, 16, 128, 128),
    (1, 1000, 16, 16, 128, 128),
    (2, 50, 32, 32, 64, 96),
]
# Dtype, precision, and the largest relative error: interpreted, on a GPU. The interpreter forms tf32 products exactly;
# bf16 gets operands that bfloat16 holds exactly.
PRECISIONS: list[tuple[torch.dtype, str, float, float]] = [
    (torch.float64, "ieee", 1e-14, 1e-13),
    (torch.float32, "ieee", 1e-6, 2e-6),
    (torch.float32, "tf32", 1e-6, 2e-3),
    (torch.float32, "bf16", 1e-6, 1e-5),
]
CASES = [(shape, PRECISIONS[0]) for shape in SHAPES]
CASES += [(shape, numbers) for shape in (SHAPES[1], SHAPES[5]) for numbers in PRECISIONS[1:]]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
each_case = pytest.mark.parametrize(
    "shape, numbers", CASES, ids=[f"{'x'.join(map(str, shape))}-{str(d)[6:]}-{p}" for shape, (d, p, *_) in CASES]
)


@pytest.fixture(autouse=True)
def measured_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell says."""
    monkeypatch.delenv("PAD_FAST_CONV", raising=False)


class Problem:
    """Operands of every operation on one layer, the filters somewhere inside flat parameters."""

    offset = 3

    def __init__(self, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, precision: str) -> None:
        self.K, self.B, self.H, self.W, self.I, self.O = shape
        self.precision = precision
        self.seeded = torch.Generator().manual_seed(sum(shape))
        self.device, self.dtype = device, dtype
        self.h, self.hd = (self.random(self.K, self.B, self.H, self.W, self.I) for _ in range(2))
        self.gz, self.gzd = (self.random(self.K, self.B, self.H, self.W, self.O) for _ in range(2))
        self.size = 9 * self.I * self.O
        self.theta, self.direction = (self.random(self.K, self.size + 8) for _ in range(2))
        pack = conv.naive_pack
        self.w = pack(self.theta, self.offset, self.I, self.O, precision=precision)
        self.v = pack(self.direction, self.offset, self.I, self.O, precision=precision)

    def random(self, *shape: int) -> Tensor:
        values = torch.randn(shape, generator=self.seeded, dtype=torch.float64) + 0.1
        if self.precision == "bf16":  # the interpreter would cut what bfloat16 has not instead of rounding it
            values = values.bfloat16()
        return values.to(device=self.device, dtype=self.dtype)

    def filters(self, theta: Tensor) -> Tensor:
        return theta[:, self.offset : self.offset + self.size].reshape(self.K, self.O, self.I, 3, 3)

    def run(self, name: str) -> tuple[Tensor, ...]:
        """`conv.<name>`, as a tuple of results; those of weight gradients include what lies around them."""
        f, precision = getattr(conv, name), self.precision
        op = name.removeprefix("naive_")
        if op == "forward":
            return (f(self.h, self.w, precision=precision),)
        if op == "tangent":
            with_primal = f(self.h, self.hd, self.w, self.v, precision=precision)
            alone = f(self.h, self.hd, self.w, self.v, precision=precision, with_primal=False)
            assert alone[0] is None
            return (*with_primal, alone[1])
        if op == "data_grad":
            return (f(self.gz, self.w, precision=precision),)
        if op == "data_grad_dual":
            return tuple(f(self.gz, self.gzd, self.w, self.v, precision=precision))
        operands = (self.h, self.gz) if op == "weight_grad" else (self.h, self.hd, self.gz, self.gzd)
        assigned, added = torch.full_like(self.theta, 2.5), self.direction.clone()
        f(*operands, assigned, self.offset, precision=precision)
        f(*operands, added, self.offset, precision=precision, accumulate=True)
        return assigned, added


OPERATIONS = ("forward", "tangent", "data_grad", "data_grad_dual", "weight_grad", "weight_grad_dual")


def problem_of(shape: tuple[int, ...], numbers: tuple[Any, ...], device: torch.device) -> tuple[Problem, float]:
    dtype, precision, interpreted, measured = numbers
    return Problem(shape, device, dtype, precision), interpreted if device.type == "cpu" else measured


def assert_twins(problem: Problem, op: str, tolerance: float) -> None:
    found, expected = problem.run(op), problem.run(f"naive_{op}")
    assert len(found) == len(expected)
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == e.dtype and a.is_contiguous()
        assert relative_error(a, e) < tolerance, describe_difference(a, e)


# ---------------------------------------------------------------- kernels against twins


@each_case
@pytest.mark.parametrize("op", OPERATIONS)
def test_kernel_equals_its_twin(op, shape, numbers, kernel_device):
    problem, tolerance = problem_of(shape, numbers, kernel_device)
    with counting() as count:
        assert_twins(problem, op, tolerance)
    assert count.launches and not any("cudnn" in name for name, _ in count.launches)


@pytest.fixture
def fresh_plans() -> Iterator[None]:
    """Plans made inside a test stay there."""
    plans = (launches.plan_convolution, launches.plan_dual, launches.plan_weight_gradient)
    for plan in plans:
        plan.cache_clear()
    yield
    for plan in plans:
        plan.cache_clear()


@pytest.mark.parametrize("numbers", PRECISIONS[:3], ids=["float64", "ieee", "tf32"])
@pytest.mark.parametrize("dual", [False, True], ids=["single", "dual"])
def test_every_tile_gives_the_same(dual, numbers, kernel_device, monkeypatch, fresh_plans):
    problem, tolerance = problem_of((1, 3, 9, 7, 20, 33), numbers, kernel_device)
    kind = "float64" if numbers[0] == torch.float64 else numbers[1]
    candidates = (tiles._DUAL_TILES if dual else tiles._TILES)[kind]
    assert len(candidates) > 1
    for tile in candidates:
        monkeypatch.setattr(launches, "convolution_tile", lambda *_, tile=tile, **__: (tile, 1))
        for plan in (launches.plan_convolution, launches.plan_dual):
            plan.cache_clear()
        assert_twins(problem, "data_grad_dual" if dual else "data_grad", tolerance)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("numbers", [PRECISIONS[0], PRECISIONS[2]], ids=["float64", "tf32"])
@pytest.mark.parametrize("op", OPERATIONS[:4])
def test_taps_split_over_programs(op, numbers, splits, kernel_device, monkeypatch, fresh_plans):
    problem, tolerance = problem_of((2, 2, 5, 4, 20, 17), numbers, kernel_device)
    whole = tiles.convolution_tile
    monkeypatch.setattr(launches, "convolution_tile", lambda *args, **options: (whole(*args, **options)[0], splits))
    with counting() as count:
        assert_twins(problem, op, tolerance)
    assert any(name == "split_sum_kernel" for name, _ in count.launches) == (splits > 1)


@pytest.mark.parametrize("numbers", [PRECISIONS[0], *PRECISIONS[2:]], ids=["float64", "tf32", "bf16"])
@pytest.mark.parametrize("span", [1, 3])
def test_weight_gradients_split_over_positions(span, numbers, kernel_device, monkeypatch, fresh_plans):
    problem, tolerance = problem_of((1, 5, 7, 6, 17, 4), numbers, kernel_device)
    whole = tiles.gradient_tile

    def split(layer: Layer, **options: Any) -> tuple[tiles.Tile, int]:
        tile = whole(layer, **options)[0]
        return tile, tile.positions * span

    monkeypatch.setattr(launches, "gradient_tile", split)
    layer = Layer(1, 5, 7, 6, 17, 4, problem.precision, problem.dtype, kernel_device)
    assert launches.plan_weight_gradient(layer)[1] >= 2
    for op in ("weight_grad", "weight_grad_dual"):
        assert_twins(problem, op, tolerance)


@pytest.mark.parametrize("numbers", PRECISIONS[:3], ids=["float64", "ieee", "tf32"])
def test_every_tile_of_weight_gradients_gives_the_same(numbers, kernel_device, monkeypatch, fresh_plans):
    problem, tolerance = problem_of((1, 3, 5, 7, 20, 33), numbers, kernel_device)
    candidates = tiles._GRADIENT_TILES["float64" if numbers[0] == torch.float64 else numbers[1]]
    assert len(candidates) > 1
    for tile in candidates:
        monkeypatch.setattr(launches, "gradient_tile", lambda *_, tile=tile, **__: (tile, 2 * tile.positions))
        launches.plan_weight_gradient.cache_clear()
        assert_twins(problem, "weight_grad_dual", tolerance)


@pytest.mark.parametrize("op", OPERATIONS)
def test_bf16_rounds_operands_and_nothing_else(op, kernel_device):
    shape, device = (2, 3, 6, 5, 20, 18), kernel_device
    exact, rounding = Problem(shape, device, torch.float32, "ieee"), Problem(shape, device, torch.float32, "ieee")
    rounding.precision = "bf16"
    for found, expected in zip(rounding.run(op), exact.run(f"naive_{op}"), strict=True):
        assert 3e-4 < relative_error(found, expected) < 8e-3


def test_a_weight_gradient_keeps_to_its_part(kernel_device):
    problem, _ = problem_of(SHAPES[3], PRECISIONS[0], kernel_device)
    assigned, added = problem.run("weight_grad")
    for result, before in ((assigned, torch.full_like(assigned, 2.5)), (added, problem.direction)):
        outside = torch.ones_like(result, dtype=torch.bool)
        outside[:, problem.offset : problem.offset + problem.size] = False
        assert torch.equal(result[outside], before[outside])
        assert not torch.isclose(result[~outside], before[~outside]).any()


def test_a_strided_row_of_gradients(kernel_device):
    problem, tolerance = problem_of(SHAPES[2], PRECISIONS[0], kernel_device)
    wide = torch.full((2, problem.size + 40), 7.0, dtype=torch.float64, device=kernel_device)
    out, expected = wide[:, 11 : 11 + problem.size + 8], torch.full_like(problem.theta, 7.0)
    conv.weight_grad(problem.h, problem.gz, out, 3, precision="ieee")
    conv.naive_weight_grad(problem.h, problem.gz, expected, 3, precision="ieee")
    assert relative_error(out, expected) < tolerance
    assert bool((wide[:, :14] == 7).all()) and bool((wide[:, 14 + problem.size :] == 7).all())


def test_an_expanded_layer_is_refused_not_misread(kernel_device):
    problem, _ = problem_of(SHAPES[2], PRECISIONS[0], kernel_device)
    with pytest.raises(InputError, match="h must be contiguous"):
        conv.forward(problem.h[:1].expand(2, -1, -1, -1, -1), problem.w, precision="ieee")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("shape", REAL, ids=lambda shape: "x".join(map(str, shape)))
def test_real_sizes_on_the_gpu(shape, op, monkeypatch):
    monkeypatch.setenv("PAD_FAST_CONV", "triton")
    problem = Problem(shape, torch.device("cuda"), torch.float32, "tf32")
    found = problem.run(op)
    assert all(torch.equal(*pair) for pair in zip(found, problem.run(op), strict=True)), "two runs differ"
    monkeypatch.setenv("PAD_FAST_CONV", "cudnn")
    problem.precision = "ieee"
    for a, e in zip(found, problem.run(op), strict=True):
        assert relative_error(a, e) < 2e-3, describe_difference(a, e)


# ---------------------------------------------------------------- twins against torch


@each_shape
def test_twins_are_torch(shape):
    problem = Problem(shape, torch.device("cpu"), torch.float64, "ieee")
    gh, ghd = problem.run("naive_data_grad_dual")
    z, zd, alone = problem.run("naive_tangent")
    assert torch.equal(zd, alone)
    for k in range(problem.K):
        filters, directions = problem.filters(problem.theta)[k], problem.filters(problem.direction)[k]
        first = [x[k].permute(0, 3, 1, 2).clone().requires_grad_() for x in (problem.h, problem.hd)]
        leaves = [*first, filters.clone().requires_grad_(), directions.clone().requires_grad_()]
        h, hd, w, v = leaves
        expected_z = F.conv2d(h, w, padding=1)
        expected_zd = F.conv2d(hd, w, padding=1) + F.conv2d(h, v, padding=1)
        g, gd = (x[k].permute(0, 3, 1, 2) for x in (problem.gz, problem.gzd))
        pulled = torch.autograd.grad([expected_z, expected_zd], leaves, [g, gd])
        # The derivative by w is gz (x) h + gzd (x) hd.
        out = torch.zeros(1, problem.size, dtype=torch.float64)
        maps = [x[k : k + 1] for x in (problem.h, problem.hd, problem.gz, problem.gzd)]
        conv.naive_weight_grad_dual(*maps, out, 0, precision="ieee")
        pairs = [(z[k], expected_z), (zd[k], expected_zd), (gh[k], pulled[0]), (ghd[k], pulled[1])]
        for found, expected in pairs:
            assert relative_error(found.permute(0, 3, 1, 2), expected) < 1e-14
        assert relative_error(out.view(filters.shape), pulled[2]) < 1e-14


@pytest.mark.parametrize("numbers", PRECISIONS[:1], ids=["float64"])
def test_data_gradient_is_the_transpose(numbers, kernel_device):
    problem, _ = problem_of((2, 1, 7, 10, 18, 33), numbers, kernel_device)
    (z,), (gh,) = problem.run("forward"), problem.run("data_grad")
    ahead, back = float((z * problem.gz).sum()), float((gh * problem.h).sum())
    assert abs(ahead - back) < 1e-12 * float(z.norm() * problem.gz.norm())


# ---------------------------------------------------------------- packing


@each_case
def test_pack(shape, numbers, kernel_device):
    problem, _ = problem_of(shape, numbers, kernel_device)
    packed = conv.pack(problem.theta, 3, problem.I, problem.O, precision=problem.precision)
    for found, expected in zip(packed, problem.w, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_layers_evenly_apart_are_packed_in_one_launch(kernel_device):
    theta = torch.randn(2, 9 * (6 + 6 + 6 + 12) + 20, generator=torch.Generator().manual_seed(1)).to(kernel_device)
    layers = [(1, 2, 3), (60, 2, 3), (119, 2, 3), (178, 3, 4)]
    with counting() as count:
        packed = conv.pack_all(theta, layers)
    assert len(count.launches) == 2
    for found, expected in zip(packed, conv.naive_pack_all(theta, layers), strict=True):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
        assert found.forward.is_contiguous() and found.backward.is_contiguous()


def test_layers_unevenly_apart_or_out_of_order(kernel_device):
    theta = torch.randn(1, 300, generator=torch.Generator().manual_seed(2)).to(kernel_device)
    for layers in ([(200, 2, 2), (3, 2, 2)], [(0, 2, 2), (50, 2, 2), (90, 2, 2), (260, 2, 2)], [(4, 1, 3), (4, 1, 3)]):
        for found, expected in zip(conv.pack_all(theta, layers), conv.naive_pack_all(theta, layers), strict=True):
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


# ---------------------------------------------------------------- cuDNN's route


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]], ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("numbers", PRECISIONS[:2], ids=["float64", "ieee"])
def test_cudnn_route_equals_the_twin(numbers, shape, op, kernel_device, monkeypatch):
    monkeypatch.setenv("PAD_FAST_CONV", "cudnn")
    problem, tolerance = problem_of(shape, numbers, kernel_device)
    settings = torch.backends.cudnn
    before = (settings.conv.fp32_precision, settings.benchmark, settings.deterministic)
    with counting() as count:
        assert_twins(problem, op, tolerance)
    assert count.launches and all(name.startswith("cudnn") for name, _ in count.launches)
    assert before == (settings.conv.fp32_precision, settings.benchmark, settings.deterministic)


# ---------------------------------------------------------------- what is compiled

READ_PTX = """
import json, re, sys
from pad_fast.kernels import conv
from pad_fast.kernels.aot import compile_production

found = {}
for item in conv.production():
    gradient = item.kernel.__name__ == "weight_gradient_kernel" and item.constexprs["H"] == 16
    if item.precision == "tf32" and (gradient or item.name.startswith("32 px, block 2, batch 100")):
        ptx = compile_production(item, 90).asm["ptx"]
        copies = re.findall(r"cp\\.async\\.c[ag]\\S*\\s+\\[[^;]*?\\],\\s*\\[[^;]*?\\],\\s*(0x\\w+|\\d+)", ptx)
        row = found.setdefault(item.kernel.__name__, {"wgmma": 0, "mma": 0, "copies": []})
        row["wgmma"] += len(re.findall(r"wgmma\\.mma_async\\S*tf32", ptx))
        row["mma"] += len(re.findall(r"mma\\.sync\\S*tf32", ptx))
        row["copies"] += sorted({int(size, 0) for size in copies})
print(json.dumps(found))
"""


def test_matrix_units_and_wide_copies():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", READ_PTX], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("convolution_kernel", "convolution_dual_kernel"):
        assert found[name]["wgmma"] > 0 and found[name]["mma"] == 0
    assert found["weight_gradient_kernel"]["mma"] > 0 and found["weight_gradient_kernel"]["wgmma"] == 0
    for name in ("convolution_kernel", "convolution_dual_kernel"):
        assert set(found[name]["copies"]) == {16}
    assert set(found["weight_gradient_kernel"]["copies"]) == {8, 16}


# ---------------------------------------------------------------- tiles, costs, refusals


@pytest.mark.parametrize(
    "batch, size, least", [(10, 8, 40), (10, 16, 80), (100, 8, 100), (100, 16, 100), (1000, 16, 132)]
)
def test_programs_fill_the_machine(batch, size, least):
    layer = Layer(1, batch, size, size, 128, 128)
    for plan, _ in (launches.plan_convolution(layer), launches.plan_dual(layer), launches.plan_weight_gradient(layer)):
        assert math.prod(plan.grid) >= least


def test_small_layers_get_small_blocks():
    tile, _ = tiles.convolution_tile(Layer(1, 100, 8, 8, 3, 20))
    assert (tile.outputs, tile.inputs) == (32, 16)
    tile, span = tiles.gradient_tile(Layer(1, 100, 8, 8, 3, 20), shared=TARGETS[90])
    assert (tile.outputs, tile.inputs) == (32, 16) and span % tile.positions == 0


def test_weight_gradients_get_tiles_that_the_card_has_shared_memory_for():
    layers = {precision: Layer(1, 100, 16, 16, 128, 128, precision) for precision in ("bf16", "tf32")}

    def tile(precision: str, shared: int) -> tiles.Tile:
        return tiles.gradient_tile(layers[precision], shared=shared)[0]

    # Triton 3.8 gives this one 176 KiB on either card, 3.6 and 3.7 do so on an H100; an A100 has 163.
    assert tile("bf16", TARGETS[90]) == (64, 128, 64, 8, 3) == tile("bf16", 176 * 1024)
    assert tile("bf16", TARGETS[80]) == (32, 64, 64, 4, 3) == tile("bf16", 176 * 1024 - 1)
    assert tile("tf32", TARGETS[80]) == tile("tf32", TARGETS[90])
    assert tile("bf16", 1024) == (32, 64, 64, 4, 3), "the smallest, where none fits"
    call, _ = launches.plan_weight_gradient(layers["bf16"], shared=TARGETS[80])
    assert (call.options["BLOCK_P"], call.options["num_warps"]) == (32, 4)
    assert launches.plan_weight_gradient(layers["bf16"])[0].options["BLOCK_P"] == 64, "an H200's without a GPU"


def test_costs_are_counted_without_running(monkeypatch, fresh_plans):
    whole = tiles.convolution_tile
    monkeypatch.setattr(launches, "convolution_tile", lambda *args, **options: (whole(*args, **options)[0], 1))
    problem = Problem((1, 3, 8, 8, 16, 32), torch.device("cpu"), torch.float32, "tf32")
    one = 2 * 9 * 16 * 32 * 3 * 64
    maps, filters = 3 * 64 * 4, 9 * 16 * 32 * 4
    with dry_run() as count:
        z, zd, alone = problem.run("tangent")
        assigned, _ = problem.run("weight_grad")
    assert bool(z.isnan().all()) and bool((assigned == 2.5).all())
    names = [name for name, _ in count.launches]
    assert (
        names
        == ["convolution_dual_kernel", "convolution_kernel"]
        + [
            "weight_gradient_kernel",
            "weight_gradient_sum_kernel",
        ]
        * 2
    )
    costs = [cost for _, cost in count.launches]
    assert costs[0].flops == 3 * one and costs[0].bytes == maps * (2 * 16 + 2 * 32) + 2 * filters
    assert costs[1].flops == 2 * one and costs[1].bytes == maps * (2 * 16 + 32) + 2 * filters
    splits = launches.plan_weight_gradient(Layer(1, 3, 8, 8, 16, 32))[1]
    assert costs[2].flops == one and costs[2].bytes == maps * (16 + 32) + splits * filters
    assert costs[3].bytes == (splits + 1) * filters and costs[5].bytes == (splits + 2) * filters


def refusals() -> Iterator[tuple[Callable[[Problem], Any], str]]:
    yield lambda p: conv.forward(p.h[0], p.w, precision="ieee"), r"h must be \[K, B, H, W, C\]"
    yield lambda p: conv.forward(p.gz, p.w, precision="ieee"), "gz|h has 5 channels"
    yield lambda p: conv.forward(p.h, p.w, precision="fp8"), "precision must be one of tf32, ieee, bf16; got 'fp8'"
    yield lambda p: conv.forward(p.h, p.w, precision="tf32"), "float64 has precision 'ieee' only"
    yield lambda p: conv.forward(p.h.half(), p.w, precision="ieee"), "float32 or float64; got torch.float16"
    yield lambda p: conv.forward(p.h[:2], p.w, precision="ieee"), "w must be packed for 2 trajectories"
    yield lambda p: conv.tangent(p.h, p.hd[:, :1], p.w, p.v, precision="ieee"), "hd must be like h"
    yield lambda p: conv.tangent(p.h, p.hd.float(), p.w, p.v, precision="ieee"), "hd must be like h"
    yield (
        lambda p: conv.tangent(p.h, p.hd, p.w, Weights(p.v.forward[:1], p.v.backward[:1]), precision="ieee"),
        "v must be packed for 3 trajectories, like w and h",
    )
    yield (
        lambda p: conv.forward(p.h.float(), p.w, precision="ieee"),
        "w is packed as torch.float64 on cpu, but h is torch.float32 on cpu and the precision 'ieee'; pack it",
    )
    yield lambda p: conv.weight_grad(p.h, p.gz.float(), p.theta, 3, precision="ieee"), "give both in one dtype"
    yield lambda p: conv.weight_grad(p.h, p.gz[:, :1], p.theta, 3, precision="ieee"), "alike up to C"
    yield lambda p: conv.weight_grad(p.h, p.gz, p.theta, 30, precision="ieee"), "765 entries from 30 on"
    yield lambda p: conv.weight_grad(p.h, p.gz, p.theta.float(), 3, precision="ieee"), "out must be torch.float64"
    yield lambda p: conv.pack(p.theta, 9, p.I, p.O), "at 9 does not lie in 773 parameters"
    yield lambda p: conv.pack(p.theta[0], 0, p.I, p.O), r"theta must be float32 or float64 \[K, P\]"
    yield lambda p: conv.pack(p.theta, 0, p.I, p.O, precision="half"), "precision must be one of"


@pytest.mark.parametrize("call, message", list(refusals()), ids=lambda value: value if isinstance(value, str) else "")
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call(Problem(SHAPES[3], torch.device("cpu"), torch.float64, "ieee"))


def test_too_many_positions():
    with pytest.raises(InputError, match="split the batch"):
        operations._checked(Layer(1, 2**21, 32, 32, 3, 3))
