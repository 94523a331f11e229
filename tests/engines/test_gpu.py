"""What only a GPU can show: the kernels and the engine on the device, CUDA graphs, memory, and no waiting."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast import DSA, ConvNet, ParameterMask, train_experts, trajectory_matching_loss
from pad_fast.engines import Task, record_backends, registry, select
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.steps import Operations, Steps
from pad_fast.errors import BackendError
from pad_fast.kernels.launch import counting
from pad_fast.matching.distributions import match_distributions
from pad_fast.matching.gradients import channels_of, match_gradients
from pad_fast.models import FlatNetwork
from pad_fast.models.spec import NetworkSpec
from pad_fast.runtime.rng import generator
from pad_fast.scoring.forgetting import Forgetting
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer, TrainingStreams

from ..support.comparison import describe_difference, relative_error
from ..support.golden import CASES, arguments_of, network_of, served_natively
from ..support.paths import ROOT
from ..support.small import QUIET, small_data


def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} is older than compute capability 8.0"
    return None


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_missing() is not None, reason=str(_missing()))]

GPU = torch.device("cuda")
# Relative L2 by dtype and precision. Single float32 steps, against the same step in float64: one ReLU whose sign
# rounding turns around moves a small problem's gradients by up to 1e-2; the coarser the precision, the more there are.
DOUBLE = 1e-9
STEP = {"ieee": 1e-2, "tf32": 1e-1, "bf16": 3e-1}
SOME = ("images", "labels", "lr")


@pytest.fixture(autouse=True)
def _plain_float32() -> Iterator[None]:
    """The oracle computes in float32 where the engine is compared with it in float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """A fresh engine under its name, without the recordings of other tests."""
    fresh = TritonEngine()
    monkeypatch.setitem(registry._engines, "triton", fresh)
    return fresh


def problem_of(
    net: dict[str, Any],
    *,
    count: int = 9,
    steps: int = 4,
    stacked: int = 1,
    hard: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Any]:
    """Arguments of one call with nothing degenerate, on the GPU; batches of uneven sizes."""
    torch.manual_seed(seed)
    network = FlatNetwork(ConvNet(**net).to(GPU, dtype))
    draws = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(GPU, dtype)

    theta = network.initial()
    theta = theta + 0.3 * theta.abs().mean() * normal(stacked, len(theta))
    config = ConvNet(**net).config
    labels = torch.randint(0, config.classes, (count,), generator=draws).to(GPU)
    return {
        "model": network,
        "theta_start": theta,
        "theta_target": theta + 0.05 * theta.abs().mean() * normal(*theta.shape),
        "images": normal(count, config.channels, config.resolution, config.resolution) + 0.3,
        "labels": labels if hard else 1.5 * normal(count, config.classes),
        "lr": torch.tensor(0.02 + 0.001 * seed, dtype=dtype, device=GPU),
        "batches": [
            torch.randperm(count, generator=draws)[: max(1, count - step % 3 * (count // 3))] for step in range(steps)
        ],
        "mask": ParameterMask.depth(0.3),
    }


def gradients(problem: dict[str, Any], **options: Any) -> list[Tensor]:
    problem = {**problem, **options}
    wanted = [name for name in SOME if problem[name].is_floating_point()]
    for name in wanted:
        problem[name] = problem[name].detach().clone().requires_grad_()
    loss = trajectory_matching_loss(problem.pop("model"), **problem)
    weight = torch.linspace(1, -0.5, len(loss), dtype=loss.dtype, device=loss.device)
    return [loss.detach(), *torch.autograd.grad(loss, [problem[name] for name in wanted], weight)]


def assert_same(ours: list[Tensor], truth: list[Tensor], tolerance: float) -> None:
    for index, (got, expected) in enumerate(zip(ours, truth, strict=True)):
        assert float(expected.norm()) > 0, "a zero gradient proves nothing"
        assert relative_error(got, expected) < tolerance, f"{index}: " + describe_difference(got, expected)


CIFAR: dict[str, Any] = {"width": 128, "depth": 3}
SMALL: dict[str, Any] = {"channels": 1, "resolution": 8, "depth": 2, "width": 16}


# Against the golden files and the oracle --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_golden_gradients_in_double(engine, golden, name):
    case = golden(f"unroll_{name}.npz")
    net = network_of(case).to(GPU)
    arguments = {k: v.to(GPU) if isinstance(v, Tensor) else v for k, v in arguments_of(case).items()}
    if not served_natively(case):
        with pytest.raises(BackendError, match="instance norm, relu and avg pooling, not"):
            trajectory_matching_loss(net, backend="triton", **arguments)
        return
    for _ in range(3):  # plainly, recorded, replayed
        for key in SOME:
            arguments[key] = arguments[key].detach().requires_grad_()
        with record_backends() as used:
            loss = trajectory_matching_loss(net, backend="triton", **arguments)
        assert used == ["triton"]
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=DOUBLE)
        for key, expected in (("images", "grad_images"), ("labels", "grad_label_logits"), ("lr", "grad_syn_lr")):
            assert relative_error(arguments[key].grad, torch.as_tensor(case[expected])) < DOUBLE, key
    assert engine.graphs.recorded == 2


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
@pytest.mark.parametrize("name", ["plain", "width128", "gray_28px"])
def test_golden_first_steps_in_single_precision(engine, golden, name, precision):
    """One student step, because ReLUs near zero switch and carry any two float32 computations apart."""
    case = golden(f"unroll_{name}.npz")
    exact = {k: v.to(GPU) if isinstance(v, Tensor) else v for k, v in arguments_of(case).items()}
    exact["batches"] = exact["batches"][:1]
    single = {k: v.float() if isinstance(v, Tensor) else v for k, v in exact.items()}
    truth = gradients({"model": network_of(case).to(GPU), **stacked(exact)}, gradient="unroll")
    ours = gradients(
        {"model": network_of(case).to(GPU).float(), **stacked(single)}, backend="triton", precision=precision
    )
    assert_same(ours, truth, STEP[precision])
    for kind, got, expected in zip(("loss", *SOME), ours, truth, strict=True):
        print(f"error {name} {precision} {kind} {relative_error(got, expected):.1e}")


def stacked(arguments: dict[str, Any]) -> dict[str, Any]:
    """With a leading axis for one trajectory."""
    changed = {name: arguments[name][None] for name in ("theta_start", "theta_target")}
    return {**arguments, **changed, "lr": arguments["lr"].reshape(())}


def fuzzed(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    draws = torch.Generator().manual_seed(100 + seed)

    def pick(*values: Any) -> Any:
        return values[int(torch.randint(0, len(values), (1,), generator=draws))]

    resolution = pick(8, 9, 16, 28, 31, 32)
    net = {
        "channels": pick(1, 2, 3, 3, 7, 8, 17),
        "resolution": resolution,
        "depth": pick(1, 2, 3),
        "width": pick(3, 8, 17, 32, 64, 128),
        "classes": pick(2, 10, 100, 200),
    }
    run = {"count": pick(1, 2, 7, 33), "stacked": pick(1, 1, 2, 5), "hard": pick(False, True), "seed": seed}
    return net, run


@pytest.mark.parametrize("seed", range(14))
def test_fuzzed_shapes_in_double(engine, seed):
    net, run = fuzzed(seed)
    problem = problem_of(net, steps=3, **run)
    truth = gradients(problem, gradient="unroll")
    for cache in (0, 1 << 33, 1 << 33):
        assert_same(gradients(problem, backend="triton", cache=cache), truth, DOUBLE)


@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.loss(0.4), ParameterMask.layers(1)], ids=repr)
def test_masks(engine, mask):
    problem = {**problem_of(SMALL, stacked=3), "mask": mask}
    assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"), DOUBLE)


# Kernels one by one ------------------------------------------------------------------------------------------------


class Compared:
    """Runs every operation's naive twin beside it, on the same tensors, and compares what they return and write."""

    def __init__(self, kind: str) -> None:
        self.kernels, self.twins, self.kind = Operations(), Operations(naive=True), kind
        self.names: set[str] = set()
        self.counterparts: list[tuple[Any, Any]] = []  # structures that only their own kind can read

    def __getattr__(self, family: str) -> Any:
        return _ComparedFamily(self, family)

    def tolerance(self, label: str) -> float:
        """Where a kernel computes ReLU's signs itself, some near zero come out the other way; see STEP."""
        if self.kind == "double":
            return 1e-10
        signs = label.startswith(("first.", "block."))
        return STEP[self.kind] if signs else {"ieee": 1e-4, "tf32": 5e-3, "bf16": 4e-2}[self.kind]

    def counterpart(self, value: Any) -> Any:
        return next((twin for own, twin in self.counterparts if own is value), value)


class _ComparedFamily:
    def __init__(self, owner: Compared, family: str) -> None:
        self.owner, self.family = owner, family

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(getattr(self.owner.kernels, self.family), name)
        if name[0].isupper():
            return kernel
        twin = getattr(getattr(self.owner.twins, self.family), name)

        def call(*args: Any, **options: Any) -> Any:
            label, position = f"{self.family}.{name}", self._written(name, args)
            given = [self.owner.counterpart(value) for value in args]
            if position is not None:
                original = args[position].clone()
                given[position] = original.clone()
            expected = twin(*given, **options)
            result = kernel(*args, **options)
            if position is not None:
                # What was there before counts only where it was added to.
                before = original if options["accumulate"] else torch.zeros_like(original)
                self._compare(label, args[position] - before, given[position] - before)
            self._compare(label, result, expected)
            return result

        return call

    def _written(self, name: str, args: tuple[Any, ...]) -> int | None:
        """Where among the arguments the flat gradients are that an operation writes into."""
        if self.family == "classifier":
            return {"backward": 3, "backward_dual": 6}.get(name)
        if name in ("weight_grad", "weight_grad_dual"):
            return len(args) - 2
        if name in ("backward", "adjoint") and self.family in ("block", "first"):
            return len(args) - (3 if self.family == "block" else 1)
        return None

    def _compare(self, label: str, result: Any, expected: Any) -> None:
        if isinstance(result, Tensor) and isinstance(expected, Tensor):
            self.owner.names.add(label)
            if label.endswith("logits"):  # parts of sums, and not as many on both sides
                result, expected = result.sum(0), expected.sum(0)
            if float(expected.double().norm()) > 0:
                error = relative_error(result, expected)
                assert error < self.owner.tolerance(label), label + ": " + describe_difference(result, expected)
        elif type(result) is tuple:
            for own, twin in zip(result, expected, strict=True):
                self._compare(label, own, twin)
        elif isinstance(result, list):
            for own, twin in zip(result, expected, strict=True):
                self.owner.counterparts.append((own, twin))
                for tensor, other in zip(own, twin, strict=True):
                    self._compare(label, tensor, other)
        elif result is not None:
            self.owner.counterparts.append((result, expected))


KERNEL_NETS: dict[str, dict[str, Any]] = {
    "cifar": CIFAR,
    "odd": {"channels": 2, "resolution": 33, "depth": 3, "width": 17, "classes": 7},
    "gray28": {"channels": 1, "resolution": 28, "depth": 3, "width": 32},
    "many_channels": {"channels": 17, "resolution": 9, "depth": 2, "width": 24},
    "tiny": {"resolution": 64, "depth": 4, "width": 64, "classes": 200},
}


@pytest.mark.parametrize("kind", ["double", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("name", KERNEL_NETS)
def test_every_kernel_against_its_twin(name, kind):
    dtype = torch.float64 if kind == "double" else torch.float32
    compared = Compared(kind)
    problem = problem_of(KERNEL_NETS[name], count=5, stacked=2, dtype=dtype)
    steps = Steps(compared, problem["model"].module.config, "ieee" if kind == "double" else kind)
    theta, x = problem["theta_start"], problem["images"][None].expand(2, -1, -1, -1, -1)
    v = torch.randn_like(theta)
    for accumulate in (False, True):
        out, kept = torch.zeros_like(theta), []
        if accumulate:
            out.normal_()
        shared = {"batch": 7, "accumulate": accumulate}
        steps.plain(theta, x, problem["labels"], out=out, keep=kept, **shared)
        wants = {"wants_theta": True, "wants_images": True, "wants_labels": True}
        steps.adjoint(theta, v, x, problem["labels"], out=out, kept=None, **wants, **shared)
        steps.adjoint(theta, v, x, problem["labels"], out=out, kept=kept, **wants, **shared)
    assert len(compared.names) >= 12, compared.names


# CUDA graphs -------------------------------------------------------------------------------------------------------


def test_graphs_against_plain_launches(engine, monkeypatch):
    for net, dtype, tolerance in ((SMALL, torch.float64, 1e-11), (CIFAR, torch.float32, STEP["ieee"])):
        problems = [problem_of(net, seed=seed, count=6, dtype=dtype) for seed in range(4)]
        dsa = DSA("color_crop_cutout_flip_scale_rotate")
        before = engine.graphs.recorded
        graphs = [
            gradients(p, backend="triton", augment=dsa.seeded(seed), cache=1 << 30)
            for seed, p in enumerate([problems[0], *problems])
        ][1:]
        assert engine.graphs.recorded == before + 2
        again = gradients(problems[2], backend="triton", augment=dsa.seeded(3), cache=1 << 30)
        assert all(torch.equal(a, b) for a, b in zip(graphs[2], again, strict=True)), "a replay is a replay"
        monkeypatch.setenv("PAD_FAST_GRAPHS", "0")
        for seed, (problem, ours) in enumerate(zip(problems, graphs, strict=True)):
            plain = gradients(problem, backend="triton", augment=dsa.seeded(seed + 1), cache=1 << 30)
            assert_same(ours, plain, tolerance)
        monkeypatch.delenv("PAD_FAST_GRAPHS")


def test_dsa_in_a_graph_equals_autograd_with_the_same_draws(engine):
    from pad_fast.kernels import augment as kernels

    problem = problem_of({"channels": 3, "resolution": 32, "depth": 2, "width": 8}, steps=9)
    sizes = [len(batch) for batch in problem["batches"]]
    for seed in range(5):
        table = kernels.draw(torch.tensor(seed, device=GPU), steps=9, batch=max(sizes), shape=(32, 32))

        def same_draws(images: Tensor, step: int, table: Tensor = table) -> Tensor:
            return kernels.naive_apply(images, table[step, 0, : len(images)])

        ours = gradients(problem, backend="triton", augment=DSA().seeded(seed))
        assert_same(ours, gradients(problem, gradient="unroll", augment=same_draws), DOUBLE)
    assert engine.graphs.recorded == 2


def test_shapes_that_change_and_come_back(engine):
    for count in (5, 8, 5, 8, 5):
        problem = problem_of(SMALL, count=count)
        assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"), DOUBLE)
    assert engine.graphs.recorded == 4


def test_several_trajectories_equal_one_by_one(engine):
    problem = problem_of(SMALL, stacked=4)
    weight = torch.linspace(1, -0.5, 4, dtype=torch.float64, device=GPU)
    for _ in range(3):
        together = gradients(problem, backend="triton")
        total: list[Any] = [0, 0, 0]
        for k in range(4):
            one = {**problem, **{name: problem[name][k : k + 1] for name in ("theta_start", "theta_target")}}
            loss, *grads = gradients(one, backend="triton")
            assert relative_error(together[0][k : k + 1], loss) < 1e-12
            total = [summed + weight[k] * grad for summed, grad in zip(total, grads, strict=True)]
        assert_same(together[1:], total, 1e-11)


def test_runs_at_once_and_results_that_stay(engine):
    problems = [problem_of(SMALL, seed=seed) for seed in range(3)]
    truth = [gradients(problem, gradient="unroll") for problem in problems]
    for _ in range(3):
        leaves = [problem["images"].clone().requires_grad_() for problem in problems]
        losses = [
            trajectory_matching_loss(backend="triton", **{**problem, "images": leaf})
            for problem, leaf in zip(problems, leaves, strict=True)
        ]
        for grad, expected in zip(torch.autograd.grad(sum(losses).sum(), leaves), truth, strict=True):
            assert relative_error(grad, expected[1]) < DOUBLE
        del losses, leaves
        gc.collect()


def test_an_iteration_does_not_wait_for_the_gpu(engine):
    problem = problem_of(SMALL, dtype=torch.float32)
    gradients_of = [gradients(problem, backend="triton", augment=DSA().seeded(seed)) for seed in range(3)]
    del gradients_of
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for seed in range(3):
            gradients(problem, backend="triton", augment=DSA().seeded(seed))
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Memory ------------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_t(engine):
    peaks = []
    for steps in (4, 32):
        problem = problem_of(CIFAR, count=100, steps=1, dtype=torch.float32)
        problem["batches"] = [torch.arange(100)] * steps
        engine.graphs.clear()
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        for _ in range(3):
            gradients(problem, backend="triton")
        peaks.append(torch.cuda.max_memory_reserved() - before)
    vector = 4 * problem["model"].parameter_count
    assert peaks[1] <= 1.2 * peaks[0] + 2 * 28 * vector, peaks


def test_out_of_memory_goes_on_in_parts(engine, caplog):
    problem = problem_of(CIFAR, count=400, steps=1, dtype=torch.float32)
    problem["batches"] = [torch.arange(400)] * 3
    truth = gradients(problem, backend="triton", precision="ieee")
    engine.graphs.clear()
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    limit = torch.cuda.memory_reserved() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        for _ in range(3):
            ours = gradients(problem, backend="triton", precision="ieee", cache=1 << 40)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "GPU memory ran out" in caplog.text
    assert_same(ours, truth, STEP["ieee"])


# Ordinary training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: GSAM(0.05), lambda: SGD(0.05, momentum=0.9, weight_decay=5e-4)])
def test_whole_epochs(engine, make):
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(70, 3, 32, 32, generator=draws).to(GPU)
    labels = torch.randint(0, 10, (70,), generator=draws).to(GPU)
    ends = []
    for backend in ("triton", "autograd"):
        torch.manual_seed(0)
        net = FlatNetwork(ConvNet(width=32))
        trainer = Trainer(net, device=GPU, backend=backend, precision="ieee" if backend == "triton" else "auto")
        start, optimizer = trainer.theta, make()
        for _ in range(3):
            trainer.epoch(images, labels, torch.arange(70, device=GPU).split(32), optimizer)
        ends.append(trainer.theta - start)
        logits = trainer.logits(images)
        assert list(logits.shape) == [70, 10]
    assert relative_error(ends[0], ends[1]) < 1e-2


@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
def test_networks_trained_together_equal_one_by_one(engine, shared):
    network = FlatNetwork(ConvNet(width=32).to(GPU, torch.float64))
    task = Task(network, GPU, torch.float64)
    draws = torch.Generator().manual_seed(4)
    theta = network.initial() + 0.01 * torch.randn(3, network.parameter_count, generator=draws).to(GPU)
    images = torch.randn(1 if shared else 3, 17, 3, 32, 32, generator=draws).to(GPU).expand(3, -1, -1, -1, -1).double()
    labels = torch.randint(0, 10, (3, 17), generator=draws).to(GPU)
    alone = [select("autograd", task).loss_grad_logits(task, *one) for one in zip(theta, images, labels, strict=True)]
    truth = [torch.stack(parts) for parts in zip(*alone, strict=True)]
    for _ in range(3):  # plainly, recorded, replayed
        assert_same(list(engine.stacked_loss_grad_logits(task, theta, images, labels)), truth, DOUBLE)
    assert relative_error(engine.stacked_forward(task, theta, images), truth[2]) < DOUBLE


@pytest.mark.parametrize("optimizer", ["gsam", "sgd"])
def test_experts_together_equal_one_by_one(engine, tmp_path, monkeypatch, optimizer):
    """With augmentation by one kernel, against torch."""
    monkeypatch.setattr("pad_fast.engines.triton.engine.PRECISIONS", {"auto": "ieee"})
    settings = {"model": "ConvNetD2W32", "experts": 5, "epochs": 2, "batch": 10, "lr": 0.02, "optimizer": optimizer}
    stores = [
        train_experts(small_data(), out=tmp_path / name, device="cuda", backend=name, progress=QUIET, **settings)
        for name in ("triton", "autograd")
    ]
    for index in range(5):
        moved = [store.snapshot(index, 2) - store.snapshot(index, 0) for store in stores]
        assert relative_error(*moved) < STEP["ieee"]
    assert len(engine._limits) == 1, "the engine trained them"


def test_training_together_does_not_wait_for_the_gpu(engine):
    spec = NetworkSpec("ConvNetW32", 3, 10, 32)
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(70, 3, 32, 32, generator=draws).to(GPU)
    labels = torch.randint(0, 10, (70,), generator=draws).to(GPU)
    for count in (1, 4):
        trainer = Trainer([spec.build(0, k) for k in range(count)], device=GPU, backend="triton")
        streams = TrainingStreams(trainer, [generator(0, k) for k in range(count)], DSA())
        forgetting = Forgetting(labels, 4, networks=count if trainer.stacked else None)
        everything, optimizer = torch.arange(70, device=GPU), GSAM(0.05)
        for epoch in range(12):
            if epoch == 11:  # every operation of DSA was seen, and every shape recorded
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
            try:
                batches = streams.batches(everything, 32)
                trainer.epoch(images, labels, batches, optimizer, streams.augment, forgetting.observe)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        assert bool(trainer.theta.isfinite().all())


def test_it_must_be_asked_for():
    task = Task(FlatNetwork(ConvNet(width=4)), GPU, torch.float32)
    with record_backends() as used:
        select("auto", task)
        select("triton", task)
    assert used == ["autograd", "triton"]


def test_distilling_on_the_gpu(tmp_path):
    import pad_fast

    from .settings import SMALL as SETTINGS

    results = []
    for name in ("a", "b"):
        with record_backends() as used:
            results.append(
                pad_fast.distill("digits", out=tmp_path / name, device="cuda", backend="triton", seed=1, **SETTINGS)
            )
        assert set(used) == {"triton"}
    assert relative_error(results[0].images, results[1].images) < 1e-4, "the same seed gives the same images"
    assert bool(results[0].images.isfinite().all())


@pytest.mark.parametrize("backend", ["autograd", "triton"])
def test_gradient_and_distribution_matching_on_the_gpu(backend):
    torch.manual_seed(0)
    module = ConvNet(width=16, depth=2, resolution=16, classes=3).double()
    network = FlatNetwork(module)
    theta, channels = network.initial(), channels_of(network, ParameterMask.layers(1))
    real = [torch.randn(6, 3, 16, 16, dtype=torch.float64) for _ in range(3)]
    made = torch.randn(3, 2, 3, 16, 16, dtype=torch.float64)
    task = Task(network, torch.device("cpu"), torch.float64, "exact")
    engine = select("autograd", task)
    truth = match_gradients(engine, task, theta, real, made, channels)
    truth += match_distributions(engine, task, theta, real, made, (1, 2))
    module.to(GPU)
    there = Task(FlatNetwork(module), GPU, torch.float64, "exact")
    engine = select(backend, there)
    moved = (theta.to(GPU), [images.to(GPU) for images in real], made.to(GPU))
    with counting() as count:
        mine = match_gradients(engine, there, *moved, channels)
    assert "_distance_kernel" in [name for name, _ in count.launches]
    mine += match_distributions(engine, there, *moved, (1, 2))
    for actual, expected in zip(mine, truth, strict=True):
        assert relative_error(actual, expected) < DOUBLE, describe_difference(actual, expected)


@pytest.mark.parametrize("method", ["dsa", "dm"])
def test_distilling_by_batches_on_the_gpu(tmp_path, method):
    import pad_fast

    settings = {"method": method, "model": "ConvNetD2W16", "ipc": 2, "iterations": 12, "eval_networks": 1}
    result = pad_fast.distill(out=tmp_path, device="cuda", eval_epochs=20, eval_baselines=False, **settings)
    assert [row["iteration"] for row in result.history] == list(range(12))  # some are begun before others are settled
    assert result.images.device.type == "cpu" and bool(result.images.isfinite().all())


def test_metrics_do_not_depend_on_when_losses_are_looked_at(tmp_path, monkeypatch):
    import pad_fast

    from .settings import SMALL as SETTINGS

    for late in (0, 8):
        monkeypatch.setattr("pad_fast.distillation.trajectory_matching.LATE", late)
        pad_fast.distill("digits", out=tmp_path / str(late), device="cuda", backend="triton", seed=2, **SETTINGS)
    early, late = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("0", "8")
    )
    assert len(early) == SETTINGS["iterations"]
    for a, b in zip(early, late, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


SMALLEST = """
import torch
import pad_fast
from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
torch.manual_seed(0)
net = ConvNet(channels=2, classes=3, width=5, depth=2, resolution=7).cuda()
theta = torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()])] * 2)
images = torch.randn(3, 2, 7, 7, device="cuda", requires_grad=True)
labels = torch.randn(3, 3, device="cuda", requires_grad=True)
lr = torch.tensor(0.1, device="cuda", requires_grad=True)
for precision in ("tf32", "bf16"):
    for mask in (ParameterMask.depth(0.3), ParameterMask.loss(0.4)):
        loss = trajectory_matching_loss(net, theta, theta + 0.01 * torch.randn_like(theta), images, labels, lr,
                                        batches=[torch.tensor([0, 2]), torch.arange(3)], augment=DSA().seeded(1),
                                        mask=mask, backend="triton", precision=precision)
        loss.sum().backward()
torch.cuda.synchronize()
print("done")
"""


def run_smallest(*tool: str, seconds: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PAD_FAST_GRAPHS": "0", "PAD_FAST_CONV": "triton", "PYTHONPATH": os.getcwd()}
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # otherwise accesses beyond a tensor stay inside a big block
    command = [*tool, sys.executable, "-c", SMALLEST]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds)


def test_smallest_cases_by_themselves():
    """Also compiles what the tools then only have to watch."""
    done = run_smallest(seconds=150)
    assert done.returncode == 0 and "done" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool):
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(program):
        pytest.skip("compute-sanitizer is not installed")
    done = run_smallest(program, "--tool", tool, "--error-exitcode", "9", seconds=150)
    said = (done.stdout + done.stderr)[-3000:]
    if "not supported" in said or "Unable to" in said:
        pytest.skip(f"compute-sanitizer cannot watch this device: {said.splitlines()[0]}")
    assert done.returncode == 0 and "done" in done.stdout, said
