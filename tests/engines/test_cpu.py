"""The native CPU engine against the autograd engine: same seam, same numbers, no hidden fallback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pad_fast
from pad_fast import ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task, Wants, record_backends, select
from pad_fast.engines import cpu as native_cpu
from pad_fast.engines import registry as engine_registry
from pad_fast.errors import BackendError, InputError
from pad_fast.models import FlatNetwork
from pad_fast.runtime import extension

from ..support.comparison import describe_difference, relative_error
from ..support.native import require_native
from ..support.paths import ROOT
from ..support.small import NETS

CPU = torch.device("cpu")
INSTRUCTIONS = extension.instruction_sets() if extension.available() else []  # best first
STEP = 1e-9  # relative L2 in float64; worst seen 4e-13
EXACT = 1e-12
FLOATS = 1e-5  # in float32


@pytest.fixture(autouse=True)
def _native() -> None:
    require_native()


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[FlatNetwork, Tensor]:
    """A network with parameters away from their initial zeros and ones."""
    torch.manual_seed(seed)
    network = FlatNetwork(ConvNet(**NETS[name]).to(dtype))
    theta = network.initial()
    scale = theta.abs().mean()
    return network, theta + 0.5 * scale * torch.randn_like(theta)


def batch_of(network: FlatNetwork, count: int, *, hard: bool, seed: int = 1) -> tuple[Tensor, Tensor]:
    module = network.module
    assert isinstance(module, ConvNet)
    config = module.config
    draws = torch.Generator().manual_seed(seed)
    dtype = next(module.parameters()).dtype
    images = torch.randn(
        count, config.channels, config.resolution, config.resolution, generator=draws, dtype=torch.float64
    )
    if hard:
        return (images + 0.3).to(dtype), torch.randint(0, config.classes, (count,), generator=draws)
    return (images + 0.3).to(dtype), 1.5 * torch.randn(count, config.classes, generator=draws, dtype=torch.float64).to(
        dtype
    )


def adjoint(backend: str, network: FlatNetwork, theta: Tensor, v: Tensor, images: Tensor, labels: Tensor, **task: Any):
    problem = Task(network, CPU, theta.dtype, "exact", **task)
    student = select(backend, problem).student(problem)
    gradient = student.gradient(0, theta[None], images, labels)
    wants = Wants(theta=True, images=True, labels=labels.is_floating_point())
    pulled = student.adjoint(0, theta[None], v[None], images, labels, wants)
    named = {"gradient": gradient, "phi": pulled.phi, "theta": pulled.theta, "images": pulled.images}
    return named if pulled.labels is None else {**named, "labels": pulled.labels}


def compare(name: str, count: int, *, hard: bool = False, tolerance: float = STEP, **task: Any) -> None:
    network, theta = make(name)
    images, labels = batch_of(network, count, hard=hard)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=theta.dtype)
    truth = adjoint("autograd", network, theta, v, images, labels)
    with record_backends() as used:
        native = adjoint("cpu", network, theta, v, images, labels, **task)
    assert used == ["cpu"]
    assert set(native) == set(truth)
    for key, expected in truth.items():
        assert expected is not None and float(expected.norm()) > 1e-8, key
        assert relative_error(native[key], expected) < tolerance, f"{key}: " + describe_difference(
            native[key], expected
        )


def compare_in_floats(name: str, count: int, **task: Any) -> None:
    """Against float64. In one seed of several an activation within rounding of 0 switches, which is no mistake."""
    best: dict[str, float] = {}
    for seed in range(3):
        double, _ = make(name, torch.float64, seed)
        network, theta = make(name, torch.float32, seed)
        images, labels = batch_of(network, count, hard=False, seed=seed + 20)
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed))
        truth = adjoint("autograd", double, theta.double(), v.double(), images.double(), labels.double())
        native = adjoint("cpu", network, theta, v, images, labels, **task)
        for key in ("gradient", "theta", "images", "labels"):
            best[key] = min(best.get(key, 1.0), relative_error(native[key], truth[key]))
    assert all(error < FLOATS for error in best.values()), (name, count, best)


def as_if_many(monkeypatch) -> None:
    """Small batches get the tiles of large ones."""
    monkeypatch.setattr(native_cpu, "_FEW_IMAGES", 0)


@pytest.mark.parametrize(("precision", "many"), [("high", False), ("high", True), ("highest", False)])
@pytest.mark.parametrize("name", NETS)
def test_a_step_and_its_adjoint_in_double(name, precision, many, monkeypatch):
    if many:
        as_if_many(monkeypatch)
    compare(name, 3, precision=precision)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_batch_sizes(count, hard):
    compare("digits", count, hard=hard)
    compare("odd33", count, hard=hard)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        compare("gray28", 7)
        compare("digits", 100)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["cifar", "digits", "gray28", "depth1", "one_pixel"])
def test_keeping_activations_changes_nothing(name):
    compare(name, 5, cache_bytes=1 << 30)
    network, theta = make(name, torch.float32)
    images, labels = batch_of(network, 5, hard=False)
    plain, kept = (
        adjoint("cpu", network, theta, theta.flip(0), images, labels, cache_bytes=size) for size in (0, 1 << 30)
    )
    for key in plain:
        assert relative_error(kept[key], plain[key]) < 1e-5, key


def test_a_budget_for_some_of_the_steps():
    """The first steps are kept until the budget is used up, the rest are computed again."""
    network, theta = make("digits")
    images, labels = batch_of(network, 12, hard=False)
    arguments = {
        "theta_start": theta,
        "theta_target": theta + 0.1,
        "labels": labels,
        "lr": 0.1,
        "batches": [torch.arange(4), torch.arange(12), torch.arange(5, 9)],
    }
    grads = []
    for cache in (0, 40_000, 200_000, "auto"):
        leaf = images.clone().requires_grad_()
        trajectory_matching_loss(network, images=leaf, backend="cpu", cache=cache, **arguments).backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    for other in grads[1:]:
        assert relative_error(other, grads[0]) < EXACT


@pytest.mark.parametrize("name", ["cifar", "gray28"])
def test_transposes(name):
    """<v, J u> = <J' v, u> at real sizes: the derivative of the gradient along u against its pull-back along v."""
    network, theta = make(name)
    images, labels = batch_of(network, 4, hard=False)
    draws = torch.Generator().manual_seed(3)
    u, v = (torch.randn(len(theta), generator=draws, dtype=theta.dtype) for _ in range(2))
    # The Hessian is symmetric: <v, H u> = <u, H v>.
    along_v = adjoint("cpu", network, theta, v, images, labels)["theta"][0]
    along_u = adjoint("cpu", network, theta, u, images, labels)["theta"][0]
    left, right = float(along_v @ u), float(along_u @ v)
    assert abs(left - right) <= EXACT * float(along_v.norm() * u.norm())
    # phi is linear in v, and its value is <v, g>.
    both = adjoint("cpu", network, theta, 2 * v - u, images, labels)
    assert relative_error(both["theta"][0], 2 * along_v - along_u) < EXACT
    phi = adjoint("cpu", network, theta, v, images, labels)
    assert float(phi["phi"]) == pytest.approx(float(phi["gradient"][0] @ v), rel=1e-10)


BOUNDS = {"high": 3.0, "highest": 2.5}  # times torch's own error; seen over 31 networks: 2.8 and 2.1


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("name", NETS)
def test_float32_error_is_of_torchs_size(name, instructions, monkeypatch):
    """Medians over seeds: now and then an activation within rounding of 0 switches, here or in torch."""
    monkeypatch.setenv("PAD_FAST_ISA", instructions)
    as_if_many(monkeypatch)  # the larger the tiles, the larger the error
    errors: dict[str, list[list[float]]] = {"torch": [], **{precision: [] for precision in BOUNDS}}
    for seed in range(9):
        network, theta = make(name, torch.float32, seed)
        images, labels = batch_of(network, 2, hard=False, seed=seed + 50)
        v = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed))
        double, _ = make(name, torch.float64, seed)
        truth = adjoint("autograd", double, theta.double(), v.double(), images.double(), labels.double())
        for kind, rows in errors.items():
            backend, task = ("autograd", {}) if kind == "torch" else ("cpu", {"precision": kind})
            got = adjoint(backend, network, theta, v, images, labels, **task)
            rows.append([relative_error(got[key], truth[key]) for key in ("gradient", "theta", "images", "labels")])
    median = {kind: torch.tensor(rows).median(0).values for kind, rows in errors.items()}
    for precision, bound in BOUNDS.items():
        print(instructions, name, precision, [round(float(ratio), 1) for ratio in median[precision] / median["torch"]])
        assert bool((median[precision] <= bound * median["torch"]).all()), (precision, median)


def test_runs_are_identical():
    network, theta = make("cifar", torch.float32)
    images, labels = batch_of(network, 20, hard=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = adjoint("cpu", network, theta, theta, images, labels)
        for _ in range(3):
            again = adjoint("cpu", network, theta, theta, images, labels)
            assert all(torch.equal(first[key], again[key]) for key in first)
    finally:
        torch.set_num_threads(before)


def test_a_whole_unroll_with_everything_off_its_default():
    network, theta = make("digits")
    draws = torch.Generator().manual_seed(8)
    thetas = theta + 0.02 * torch.randn(3, len(theta), generator=draws, dtype=theta.dtype)
    images, labels = batch_of(network, 9, hard=False)
    results = []
    for backend, gradient in (("cpu", "exact"), ("autograd", "unroll")):
        learned = [t.clone().requires_grad_() for t in (images, labels, torch.tensor(0.21, dtype=torch.float64))]
        loss = trajectory_matching_loss(
            network,
            thetas,
            thetas + 0.1,
            *learned,
            batches=[torch.tensor([0, 1, 4]), torch.tensor([8]), torch.arange(9), torch.tensor([3, 3])],
            mask=ParameterMask.layers(1),
            augment=pad_fast.DSA("color_crop_cutout_flip_scale_rotate").seeded(4),
            backend=backend,
            gradient=gradient,
        )
        weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        results.append([loss.detach(), *torch.autograd.grad(loss, learned, weight)])
    for native, truth in zip(*results, strict=True):
        assert relative_error(native, truth) < STEP


def test_training_steps_and_logits():
    network, theta = make("gray28")
    images, labels = batch_of(network, 9, hard=True)
    task = Task(network, CPU, torch.float64)
    native, torch_engine = select("cpu", task), select("autograd", task)
    for targets in (labels, batch_of(network, 9, hard=False)[1]):
        loss, gradient = native.loss_and_grad(task, theta, images, targets)
        expected_loss, expected = torch_engine.loss_and_grad(task, theta, images, targets)
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
        assert relative_error(gradient, expected) < EXACT
    assert relative_error(native.forward(task, theta, images), torch_engine.forward(task, theta, images)) < EXACT


def test_strided_inputs_are_understood():
    network, theta = make("odd33")
    images, labels = batch_of(network, 6, hard=False)
    task = Task(network, CPU, torch.float64)
    engine = select("cpu", task)
    expected = engine.loss_and_grad(task, theta, images, labels)[1]
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    every_other = torch.stack([theta, theta], 1)[:, 0]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    assert torch.equal(engine.loss_and_grad(task, every_other, strided, labels.t().contiguous().t())[1], expected)


def test_nan_is_not_hidden():
    network, theta = make("digits", torch.float32)
    images, labels = batch_of(network, 4, hard=False)
    theta[5] = float("nan")
    task = Task(network, CPU, torch.float32)
    loss, gradient = select("cpu", task).loss_and_grad(task, theta, images, labels)
    assert bool(loss.isnan()) and not bool(gradient.isfinite().all())


@pytest.mark.parametrize("instructions", INSTRUCTIONS[:2])
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, 0x7F800000], ids=hex)
@pytest.mark.parametrize("where", ["weights", "images"])
def test_no_kind_of_nan_and_no_infinity_is_hidden(where, bits, instructions, monkeypatch):
    """In a layer whose products may run on bfloat16 parts of the floats."""
    monkeypatch.setenv("PAD_FAST_ISA", instructions)
    network, theta = make("gray28", torch.float32)
    images, labels = batch_of(network, 4, hard=False)
    at = theta.view(torch.int32) if where == "weights" else images.view(-1).view(torch.int32)
    at[17 * 9 + 3 * 17 + 40 if where == "weights" else 100] = bits
    task = Task(network, CPU, torch.float32)
    loss, gradient = select("cpu", task).loss_and_grad(task, theta, images, labels)
    assert bool(loss.isnan()) and not bool(gradient.isfinite().all())


def native_gradient(precision: str, network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    module = network.module
    assert isinstance(module, ConvNet)
    config = module.config
    plan = native_cpu.make_plan(
        channels=config.channels,
        height=config.resolution,
        width=config.resolution,
        pad_first=config.first_padding,
        depth=config.depth,
        net_width=config.width,
        classes=config.classes,
        dtype="f32",
        precision=precision,
        threads=1,
    )
    gradient = torch.empty_like(theta)
    plan.loss_and_grad(
        theta=theta.data_ptr(),
        x=images.data_ptr(),
        batch=len(images),
        labels=labels.data_ptr(),
        kind="logits",
        grad=gradient.data_ptr(),
    )
    return gradient


needs_amx = pytest.mark.skipif("amx" not in INSTRUCTIONS, reason="no AMX here")


@needs_amx
def test_products_of_bfloat16_parts(monkeypatch):
    """Three parts of a float make its products as good as float32's (1.0 of AVX-512's error); two parts do not."""
    errors: dict[tuple[str, str], list[float]] = {}
    for seed in range(5):
        double, _ = make("digits", torch.float64, seed)
        network, theta = make("digits", torch.float32, seed)
        images, labels = batch_of(network, 6, hard=False, seed=seed + 50)
        truth = adjoint("autograd", double, theta.double(), theta.double(), images.double(), labels.double())
        for scheme in (("amx", "direct"), ("avx512", "direct"), ("amx", "high"), ("avx512", "high"), ("amx", "f4x3")):
            monkeypatch.setenv("PAD_FAST_ISA", scheme[0])
            got = native_gradient(scheme[1], network, theta, images, labels)
            errors.setdefault(scheme, []).append(relative_error(got, truth["gradient"][0]))
    median = {scheme: float(torch.tensor(rows).median()) for scheme, rows in errors.items()}
    assert median["amx", "direct"] < 1.3 * median["avx512", "direct"], median
    assert median["amx", "high"] < 1.3 * median["avx512", "high"], median
    assert 10 * median["amx", "high"] < median["amx", "f4x3"] < 1e-4, median


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("norm", {"module": ConvNet(width=4, norm="batch")}, "instance norm, relu and avg pooling, not batch norm"),
    ("activation", {"module": ConvNet(width=4, activation="sigmoid")}, "sigmoid"),
    ("pooling", {"module": ConvNet(width=4, pooling="max")}, "max pooling"),
    ("module", {"module": nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))}, "Sequential is not"),
    ("dtype", {"dtype": torch.bfloat16}, "not torch.bfloat16"),
    ("precision", {"precision": "tf32"}, "not 'tf32'"),
    ("device", {"device": torch.device("meta")}, "the tensors are on meta"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_asked_for_by_name_it_raises_and_auto_falls_back_with_the_reason(name, change, message, monkeypatch, caplog):
    monkeypatch.setattr(engine_registry, "_said", set())
    module = change.get("module", ConvNet(width=4))
    task = Task(
        FlatNetwork(module),
        change.get("device", CPU),
        change.get("dtype", torch.float32),
        "exact",
        change.get("precision", "auto"),
    )
    with pytest.raises(BackendError, match=message):
        select("cpu", task)
    if name == "precision":
        with pytest.raises(BackendError, match="no backend can serve this"):
            select("auto", task)
        return
    with caplog.at_level(logging.INFO, "pad_fast"), record_backends() as used:
        select("auto", task)
        select("auto", task)
    assert used == ["autograd", "autograd"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "backend: autograd" in said[0] and "cpu: " in said[0]


def test_auto_takes_it_for_the_networks_it_serves():
    task = Task(FlatNetwork(ConvNet(width=4)), CPU, torch.float32)
    with record_backends() as used:
        select("auto", task)
    assert used == ["cpu"]


@pytest.mark.parametrize(
    ("precision", "said"),
    [("auto", "F(4x4) convolutions, errors up to 3"), ("fast", "F(4x4)"), ("highest", "F(2x2) convolutions")],
)
def test_auto_says_with_which_arithmetic(precision, said, caplog, monkeypatch):
    monkeypatch.setattr(engine_registry, "_said", set())
    task = Task(FlatNetwork(ConvNet(width=4)), CPU, torch.float32, precision=precision)
    with caplog.at_level(logging.INFO, "pad_fast"):
        select("auto", task)
    assert f"backend: cpu, {said}" in caplog.text


def test_the_names_of_the_arithmetic_mean_what_they_say():
    """F(4x4) by default and by its two names, F(2x2) by another."""
    network, theta = make("cifar", torch.float32)
    images, labels = batch_of(network, 40, hard=True)
    results = {
        name: select("cpu", task).loss_and_grad(task, theta, images, labels)[1]
        for name in ("auto", "high", "fast", "highest")
        for task in [Task(network, CPU, torch.float32, precision=name)]
    }
    assert torch.equal(results["auto"], results["high"]) and torch.equal(results["high"], results["fast"])
    assert not torch.equal(results["high"], results["highest"])
    assert relative_error(results["high"], results["highest"]) < FLOATS


def test_without_the_extension_auto_uses_torch(monkeypatch):
    monkeypatch.setattr(extension, "_module", None)
    monkeypatch.setattr(extension, "_reason", "no compiler was found")
    task = Task(FlatNetwork(ConvNet(width=4)), CPU, torch.float32)
    with record_backends() as used:
        select("auto", task)
    assert used == ["autograd"]
    with pytest.raises(BackendError, match="no compiler was found"):
        select("cpu", task)


@pytest.mark.parametrize("cache", ["lots", -5, 1.5, True])
def test_cache_must_be_bytes_or_auto(cache):
    network, theta = make("digits", torch.float32)
    images, labels = batch_of(network, 2, hard=True)
    with pytest.raises(InputError, match="number of bytes"):
        trajectory_matching_loss(network, theta, theta + 1, images, labels, 0.1, batches=[torch.arange(2)], cache=cache)


INSTRUCTION_SETS = """
import sys, torch
from pad_fast.runtime import extension
from tests.engines.test_cpu import compare, compare_in_floats, make, CPU
from pad_fast.engines import Task, cpu, select
network, _ = make("digits")
task = Task(network, CPU, torch.float64)
used = select("cpu", task).plan(task, 3).native.isa
assert used == sys.argv[1], used
few = cpu._FEW_IMAGES
for name in ("digits", "gray28", "odd33"):
    for precision in ("high", "highest"):
        compare(name, 5, precision=precision)
for name in ("digits", "gray28", "odd33", "channels17", "classes200", "wide", "deep5", "one_pixel"):
    for count in (1, 3, 19):
        for cpu._FEW_IMAGES, cache in ((few, 0), (0, 1 << 30)):
            compare_in_floats(name, count, cache_bytes=cache)
print("compared")
"""


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_instruction_set_of_this_machine(instructions):
    """Forced by the environment variable, each in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", INSTRUCTION_SETS, instructions],
        env={**os.environ, "PAD_FAST_ISA": instructions, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "compared", done.stderr


@needs_amx
@pytest.mark.parametrize(
    ("width", "resolution", "batch", "expected"),
    [
        (32, 8, 100, "avx512"),
        (32, 32, 256, "avx512"),
        (64, 16, 31, "avx512"),
        (64, 16, 32, "amx"),
        (128, 8, 10, "avx512"),
        (128, 32, 10, "amx"),
    ],
)
def test_matrix_tiles_serve_what_is_large_enough(width, resolution, batch, expected, monkeypatch):
    monkeypatch.delenv("PAD_FAST_ISA", raising=False)
    task = Task(FlatNetwork(ConvNet(width=width, depth=2, resolution=resolution)), CPU, torch.float32)
    engine = select("cpu", task)
    assert engine.plan(task, batch).native.isa == expected
    for forced in ("amx", "avx512"):
        monkeypatch.setenv("PAD_FAST_ISA", forced)
        assert engine.plan(task, batch).native.isa == forced


def test_the_tiles_of_small_batches_are_chosen_for_them(monkeypatch):
    """A plan for each power of two, and one for all larger batches; the numbers agree to rounding."""
    network, theta = make("gray28", torch.float32)
    images, labels = batch_of(network, 3, hard=True)
    task = Task(network, CPU, torch.float32, precision="high")
    engine = select("cpu", task)
    plans = {count: engine.plan(task, count) for count in (2, 3, 4, 32, 33, 500)}
    assert plans[3] is plans[4] and plans[33] is plans[500]
    assert len(set(map(id, plans.values()))) == 4
    few = engine.loss_and_grad(task, theta, images, labels)[1]
    as_if_many(monkeypatch)
    many = engine.loss_and_grad(task, theta, images, labels)[1]
    assert not torch.equal(few, many) and relative_error(few, many) < FLOATS


def test_an_instruction_set_this_machine_lacks(monkeypatch):
    monkeypatch.setenv("PAD_FAST_ISA", "sve")
    task = Task(FlatNetwork(ConvNet(width=5)), CPU, torch.float64)
    engine = select("cpu", task)
    with pytest.raises(BackendError, match="'sve' is not available on this machine"):
        engine.forward(task, task.network.initial().double(), torch.randn(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 4}, "too small"),
        ({"classes": 0}, "positive"),
        ({"precision": "f3"}, "f3"),
        ({"threads": 0}, "1..256"),
    ],
)
def test_sizes_are_checked_where_pointers_are_used(change, message):
    sizes: dict[str, Any] = {
        "channels": 1,
        "height": 8,
        "width": 8,
        "pad_first": 1,
        "depth": 2,
        "net_width": 4,
        "classes": 2,
        "dtype": "f32",
        "precision": "highest",
        "threads": 1,
    }
    with pytest.raises(BackendError, match=message):
        native_cpu.make_plan(**{**sizes, **change})
