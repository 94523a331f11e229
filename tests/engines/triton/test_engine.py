"""The Triton engine with the kernels' naive twins, in float64 on the CPU: everything about it but the kernels."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Engine, Task, Wants, record_backends, registry, select
from pad_fast.engines.base import Inputs, Passes
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.graphs import Graphs
from pad_fast.engines.triton.operations import Operations
from pad_fast.engines.triton.steps import Steps
from pad_fast.errors import BackendError
from pad_fast.models import FlatNetwork
from pad_fast.runtime import extension
from pad_fast.training.optimizers import GSAM, SGD
from pad_fast.training.trainer import Trainer

from ...support.comparison import describe_difference, relative_error
from ...support.golden import CASES, arguments_of, network_of, served_natively
from ...support.paths import ROOT
from ...support.small import NETS

pytest.importorskip("triton", reason="the kernels' modules import Triton")

CPU = torch.device("cpu")
STEP = 1e-9  # relative L2 in float64; worst seen 6e-14


class Emulated:
    """A recorder for the CPU that behaves like CUDA graphs: fixed tensors in, fixed tensors out, Python only once."""

    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tape = _Tape()
        with tape:
            result = work()
        # What a graph leaves in its tensors while it is being captured is nobody's business.
        for _, _, _, made in tape.calls:
            for tensor in made:
                if tensor.is_floating_point() and not tensor.requires_grad:
                    tensor.fill_(float("nan"))
        return tape.replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [_memory(value) for value in _tensors((args, kwargs))]
        result = function(*args, **(kwargs or {}))
        made = [value for value in _tensors(result) if _memory(value) not in given]
        self.calls.append((function, args, kwargs or {}, made))
        return result

    def replay(self) -> None:
        for function, args, kwargs, made in self.calls:
            given = [_memory(value) for value in _tensors((args, kwargs))]
            again = [value for value in _tensors(function(*args, **kwargs)) if _memory(value) not in given]
            for old, new in zip(made, again, strict=True):
                old.copy_(new)


def _memory(tensor: Tensor) -> int:
    """The same for views of each other."""
    return tensor.untyped_storage().data_ptr()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """Registered as "triton" for this test; nothing is recorded."""
    return _register(monkeypatch, TritonEngine(Operations(naive=True)))


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> TritonEngine:
    """The same with emulated graphs."""
    return _register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Emulated))


def _register(monkeypatch: pytest.MonkeyPatch, engine: TritonEngine) -> TritonEngine:
    monkeypatch.setitem(registry._engines, "triton", engine)
    return engine


def make(name: str, *, stacked: int = 1, seed: int = 0) -> tuple[FlatNetwork, Tensor]:
    """A network with parameters `[K, P]` away from their initial zeros and ones."""
    torch.manual_seed(seed)
    network = FlatNetwork(ConvNet(**NETS[name]).double())
    theta = network.initial()
    return network, theta + 0.5 * theta.abs().mean() * torch.randn(stacked, len(theta), dtype=theta.dtype)


def batch_of(name: str, count: int, *, hard: bool = False, seed: int = 1) -> tuple[Tensor, Tensor]:
    net, draws = NETS[name], torch.Generator().manual_seed(seed)
    shape = (count, net["channels"], net["resolution"], net["resolution"])
    images = torch.randn(shape, generator=draws, dtype=torch.float64) + 0.3
    if hard:
        return images, torch.randint(0, net["classes"], (count,), generator=draws)
    return images, 1.5 * torch.randn(count, net["classes"], generator=draws, dtype=torch.float64)


def step_of(backend: str, network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, **task: Any):
    problem = Task(network, CPU, theta.dtype, "exact", **task)
    student = select(backend, problem).student(problem)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(theta.dtype)
    gradient = student.gradient(0, theta, images, labels)
    wants = Wants(theta=True, images=True, labels=labels.is_floating_point())
    pulled = student.adjoint(0, theta, v, images, labels, wants)
    named = {"gradient": gradient, "phi": pulled.phi, "theta": pulled.theta, "images": pulled.images}
    return named if pulled.labels is None else {**named, "labels": pulled.labels}


def compare(name: str, count: int, *, hard: bool = False, stacked: int = 1, **task: Any) -> None:
    network, theta = make(name, stacked=stacked)
    images, labels = batch_of(name, count, hard=hard)
    truth = step_of("autograd", network, theta, images, labels)
    with record_backends() as used:
        ours = step_of("triton", network, theta, images, labels, **task)
    assert used == ["triton"]
    assert set(ours) == set(truth)
    for key, expected in truth.items():
        assert expected is not None and float(expected.norm()) > 1e-8, key
        assert relative_error(ours[key], expected) < STEP, f"{key}: " + describe_difference(ours[key], expected)


@pytest.mark.parametrize("name", NETS)
def test_a_step_and_its_adjoint(engine, name):
    compare(name, 3)


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_batch_sizes(engine, count, hard):
    compare("digits", count, hard=hard)
    compare("odd33", count, hard=hard)


@pytest.mark.parametrize("stacked", [2, 3])
@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_several_trajectories_keeping_activations_or_not(engine, stacked, cache_bytes, hard):
    compare("digits", 5, stacked=stacked, cache_bytes=cache_bytes, hard=hard)
    compare("depth1", 4, stacked=stacked, cache_bytes=cache_bytes, hard=hard)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_batches_in_parts(engine, monkeypatch, cache_bytes):
    monkeypatch.setattr("pad_fast.engines.triton.engine._WORKING_BYTES", 2 * 3 * 8 * 2_000)
    network, _ = make("digits")
    task = Task(network, CPU, torch.float64)
    assert engine._part(task, torch.empty(2, 7, 1, dtype=torch.float64)) < 7
    compare("digits", 7, stacked=2, cache_bytes=cache_bytes)
    compare("digits", 7, hard=True, cache_bytes=cache_bytes)


def test_biases_of_convolutions_have_no_gradient(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 3)
    ours = step_of("triton", network, theta, images, labels)
    for key in ("gradient", "theta"):
        for name, piece in network.unflatten(ours[key][0]).items():
            is_bias = name.startswith("features") and name.endswith("bias") and "0.bias" in name
            assert bool((piece == 0).all()) == (name in ("features.0.bias", "features.4.bias")), (name, is_bias)


def test_what_is_not_wanted_is_not_returned(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 3)
    task = Task(network, CPU, torch.float64, "exact")
    student = engine.student(task)
    full = step_of("triton", network, theta, images, labels)
    v = torch.randn(theta.shape, generator=torch.Generator().manual_seed(2), dtype=theta.dtype)
    for wanted in ("theta", "images", "labels"):
        pulled = student.adjoint(0, theta, v, images, labels, Wants(**{wanted: True}))
        got = {name: getattr(pulled, name) for name in ("theta", "images", "labels")}
        for name, value in got.items():
            if name == wanted:
                assert torch.equal(value, full[name])
            else:
                assert value is None


@pytest.mark.parametrize("name", CASES)
def test_gradients_match_the_reference(engine, golden, name):
    case = golden(f"unroll_{name}.npz")
    if int(case["width"]) > 64 or int(case["resolution"]) > 32:
        pytest.skip("minutes with naive convolutions; the kernels compute it in tests/engines/gpu")
    net, arguments = network_of(case), arguments_of(case)
    if not served_natively(case):
        with pytest.raises(BackendError, match="instance norm, relu and avg pooling, not"):
            trajectory_matching_loss(net, backend="triton", **arguments)
        return
    for key in ("images", "labels", "lr"):
        arguments[key].requires_grad_()
    with record_backends() as used:
        loss = trajectory_matching_loss(net, backend="triton", **arguments)
    assert used == ["triton"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["loss"]), rel=STEP)
    for key, expected in (("images", "grad_images"), ("labels", "grad_label_logits"), ("lr", "grad_syn_lr")):
        assert relative_error(arguments[key].grad, torch.as_tensor(case[expected])) < STEP, key


BATCHES = [torch.tensor([0, 1, 4]), torch.tensor([8]), torch.arange(9), torch.tensor([3, 3])]


def problem_of(*, stacked: int = 3, seed: int = 8, hard: bool = False, **changes: Any) -> dict[str, Any]:
    """Arguments with everything off its default."""
    network, theta = make("digits", stacked=stacked)
    draws = torch.Generator().manual_seed(seed)
    theta = theta + 0.02 * torch.randn(theta.shape, generator=draws, dtype=theta.dtype)
    images, labels = batch_of("digits", 9, hard=hard, seed=seed)
    target = theta + 0.1 * torch.randn(theta.shape, generator=draws, dtype=theta.dtype)
    lr = torch.tensor(0.2 + 0.01 * seed, dtype=torch.float64)
    given = {"theta_start": theta, "theta_target": target, "images": images, "labels": labels, "lr": lr}
    return {"model": network, **given, "batches": BATCHES, "mask": ParameterMask.layers(1), **changes}


ALL = ("images", "labels", "lr", "theta_start", "theta_target")
SOME = ("images", "labels", "lr")
WEIGHT = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def gradients(problem: dict[str, Any], wanted: tuple[str, ...] = SOME, **options: Any) -> list[Tensor]:
    problem = {**problem, **options}
    for name in wanted:
        problem[name] = problem[name].detach().clone().requires_grad_()
    loss = trajectory_matching_loss(problem.pop("model"), **problem)
    return [loss.detach(), *torch.autograd.grad(loss, [problem[name] for name in wanted], WEIGHT[: len(loss)])]


def assert_same(ours: list[Tensor], truth: list[Tensor], tolerance: float = STEP) -> None:
    for got, expected in zip(ours, truth, strict=True):
        assert float(expected.norm()) > 1e-8, "a zero gradient proves nothing"
        assert relative_error(got, expected) < tolerance, describe_difference(got, expected)


@pytest.mark.parametrize(
    "mask",
    [ParameterMask.none(), ParameterMask.depth(0.3), ParameterMask.loss(0.4), ParameterMask.layers(1)],
    ids=repr,
)
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_whole_unroll_with_every_mask(engine, mask, hard):
    problem = problem_of(mask=mask, hard=hard)
    wanted = tuple(name for name in ALL if not (hard and name == "labels"))
    assert_same(
        gradients(problem, wanted, backend="triton", cache=30_000), gradients(problem, wanted, gradient="unroll")
    )


def test_tesla(engine):
    problem = problem_of()
    assert_same(
        gradients(problem, gradient="tesla", backend="triton"), gradients(problem, gradient="tesla", backend="autograd")
    )


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "scale_rotate"])
def test_seeded_dsa_is_drawn_by_the_engine(engine, strategy):
    problem, dsa = problem_of(), DSA(strategy).seeded(4)
    ours = gradients(problem, backend="triton", augment=dsa)
    sizes = [len(batch) for batch in BATCHES]
    kernels = engine.operations.augment
    table = kernels.draw(torch.tensor(4), steps=len(sizes), batch=max(sizes), shape=(1, 8, 8), strategy=strategy)

    def same_draws(images: Tensor, step: int) -> Tensor:
        return kernels.apply(images, table[step, 0, : len(images)])

    assert_same(ours, gradients(problem, gradient="unroll", augment=same_draws))
    other = gradients(problem, backend="triton", augment=DSA(strategy).seeded(5))
    assert relative_error(other[1], ours[1]) > 1e-3, "another seed, other draws"
    plain = gradients(problem, backend="triton")
    assert relative_error(plain[1], ours[1]) > 1e-3, "the augmentation had no effect"


def test_any_other_augmentation_goes_through_autograd(engine):
    problem = problem_of()
    for augment in (
        DSA("color_crop", mode="reference").seeded(3),
        lambda images, step: images * (1 + 0.3 * torch.rand(len(images), 1, 1, 1, dtype=images.dtype)) + 0.1 * step,
    ):
        torch.manual_seed(5)
        ours = gradients(problem, backend="triton", augment=augment)
        torch.manual_seed(5)
        truth = []
        for k in range(3):  # the oracle draws anew for every trajectory
            torch.manual_seed(5)
            one = {**problem, **{name: problem[name][k : k + 1] for name in ("theta_start", "theta_target")}}
            loss, *grads = gradients(one, gradient="unroll", augment=augment)
            truth.append([loss, *(WEIGHT[k] * grad for grad in grads)])
        losses = torch.cat([row[0] for row in truth])
        assert_same(ours, [losses, *(sum(parts) for parts in list(zip(*truth, strict=True))[1:])])


def test_no_augmentation_by_name_is_none_at_all(recording):
    problem = problem_of()
    for _ in range(2):
        ours = gradients(problem, backend="triton", augment=DSA("none").seeded(1))
    assert recording.graphs.recorded == 2
    assert_same(ours, gradients(problem, gradient="unroll"))


def test_recorded_passes_follow_their_inputs(recording):
    for round_, hard in enumerate([False] * 5 + [True] * 3):
        problem = problem_of(seed=round_, hard=hard)
        wanted = tuple(name for name in ALL if not (hard and name == "labels"))
        ours = gradients(problem, wanted, backend="triton", cache=1 << 20)
        assert_same(ours, gradients(problem, wanted, gradient="unroll"))
    assert recording.graphs.recorded == 4, "one recording of each pass for soft and for hard labels"


def test_runs_are_identical_with_and_without_recording(recording):
    first, again = (gradients(problem_of(seed=3), backend="triton") for _ in range(2))
    third = gradients(problem_of(seed=3), backend="triton")
    assert recording.graphs.recorded == 2
    for a, b, c in zip(first, again, third, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)


def test_other_shapes_are_recorded_anew(recording):
    problem = problem_of()
    short = [*BATCHES[:-1], torch.tensor([3])]
    for batches in (BATCHES, short, BATCHES, short):
        ours = gradients(problem, backend="triton", batches=batches)
        assert_same(ours, gradients(problem, gradient="unroll", batches=batches))
    assert recording.graphs.recorded == 4
    for name, change in (("mask", ParameterMask.depth(0.2)), ("cache", 1 << 20), ("gradient", "tesla")):
        before = recording.graphs.recorded
        for _ in range(2):
            gradients(problem, backend="triton", **{name: change})
        assert recording.graphs.recorded == before + 2, name


def test_several_runs_at_once_do_not_share_a_recording(recording):
    """Losses of several trajectories are summed up before anything is pulled back."""
    gradients(problem_of(), backend="triton")
    problems = [problem_of(seed=seed) for seed in range(3)]
    for _ in range(2):
        total, leaves = torch.zeros((), dtype=torch.float64), []
        for problem in problems:
            problem = {**problem, "images": problem["images"].clone().requires_grad_()}
            leaves.append(problem["images"])
            total = total + (trajectory_matching_loss(problem.pop("model"), backend="triton", **problem) * WEIGHT).sum()
        for problem, grad in zip(problems, torch.autograd.grad(total, leaves), strict=True):
            assert relative_error(grad, gradients(problem, ("images",), gradient="unroll")[1]) < STEP
        del total, leaves
        gc.collect()
    assert recording.graphs.recorded == 6


def test_losses_without_a_gradient_and_gradients_twice(recording):
    problem = problem_of()
    truth = gradients(problem, ("images",), gradient="unroll")
    net = problem["model"]
    rest = {name: value for name, value in problem.items() if name not in ("model", "images")}
    for _ in range(4):  # an iteration above the threshold ends here
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        assert relative_error(loss, truth[0]) < STEP
        del loss
    assert recording.graphs.recorded == 1
    for _ in range(3):
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        (first,) = torch.autograd.grad(loss, leaf, WEIGHT, retain_graph=True)
        (second,) = torch.autograd.grad(loss, leaf, WEIGHT)
        assert relative_error(first, truth[1]) < STEP and torch.equal(first, second)
    assert recording.graphs.recorded == 2
    assert not trajectory_matching_loss(net, images=problem["images"], backend="triton", **rest).requires_grad


def test_pulled_back_again_after_the_recording_served_another_run(recording):
    problem = problem_of()
    truth = gradients(problem, ("images",), gradient="unroll")
    net, rest = problem.pop("model"), {name: value for name, value in problem.items() if name != "images"}
    for _ in range(2):
        leaf = problem["images"].clone().requires_grad_()
        loss = trajectory_matching_loss(net, images=leaf, backend="triton", **rest)
        (first,) = torch.autograd.grad(loss, leaf, WEIGHT, retain_graph=True)
        gradients(problem_of(seed=3), ("images",), backend="triton")
        (second,) = torch.autograd.grad(loss, leaf, WEIGHT)
        assert relative_error(first, truth[1]) < STEP and relative_error(second, truth[1]) < STEP
        del loss
    assert recording.graphs.recorded == 2, "a run that was pulled back does not hold its recording"


def test_results_outlive_the_next_run(recording):
    results = [gradients(problem_of(seed=seed), backend="triton") for seed in range(5)]
    for seed, ours in enumerate(results):
        assert_same(ours, gradients(problem_of(seed=seed), gradient="unroll"))


def test_other_callables_are_not_recorded(recording):
    problem = problem_of()
    for _ in range(3):
        gradients(problem, backend="triton", augment=lambda images, step: images * (step + 1))
    assert recording.graphs.recorded == 0


def test_recordings_can_be_switched_off(recording, monkeypatch):
    monkeypatch.setenv("PAD_FAST_GRAPHS", "0")
    for _ in range(3):
        gradients(problem_of(), backend="triton")
    assert recording.graphs.recorded == 0


class Broken(Emulated):
    """Cannot record; `error` says how."""

    error: RuntimeError = RuntimeError("operation not permitted when stream is capturing")
    asked = 0

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        type(self).asked += 1
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("stream is capturing"), torch.OutOfMemoryError("no room")], ids=repr)
def test_what_cannot_be_recorded_runs_plainly(monkeypatch, caplog, error):
    monkeypatch.setattr(Broken, "error", error)
    monkeypatch.setattr(Broken, "asked", 0)
    engine = _register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Broken))
    problem = problem_of()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for _ in range(4):
            assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"))
    assert Broken.asked == 1 and len(caplog.records) == 1 and str(error) in caplog.text
    task, theta = Task(problem["model"], CPU, torch.float64), problem["theta_start"][0]
    for _ in range(3):
        engine.loss_and_grad(task, theta, problem["images"], problem["labels"])
    assert Broken.asked == 2


def test_a_reverse_pass_that_cannot_be_recorded(monkeypatch, caplog):
    class Half(Emulated):
        calls = 0

        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            Half.calls += 1
            if Half.calls == 2:
                raise RuntimeError("not this one")
            return super().record(work)

    _register(monkeypatch, TritonEngine(Operations(naive=True), recorder=Half))
    for seed in range(4):
        problem = problem_of(seed=seed)
        assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"))
    assert Half.calls == 2 and "not this one" in caplog.text


class Counting(Passes):
    def __init__(self) -> None:
        self.runs = 0

    def forward(self, inputs: Inputs) -> Tensor:
        return inputs.theta_start.sum(-1)

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        return (grad_loss[:, None].expand_as(inputs.theta_start).clone(), None)


def inputs_of(value: float) -> Inputs:
    return Inputs(*(torch.full((1, 2), value, dtype=torch.float64) for _ in range(6)), None)


def test_recordings_not_used_for_longest_are_dropped():
    graphs = Graphs(Emulated, kept=2)
    for key in ("a", "b", "c"):
        for _ in range(2):
            assert float(graphs.passes(key, Counting, CPU).forward(inputs_of(3.0))) == 6
    assert graphs.recorded == 3
    assert float(graphs.passes("c", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert float(graphs.passes("b", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert graphs.recorded == 3, "both were kept"
    assert float(graphs.passes("a", Counting, CPU).forward(inputs_of(4.0))) == 8
    assert graphs.recorded == 4, "this one was dropped"
    held = [graphs.passes(key, Counting, CPU) for key in ("a", "b")]
    assert [float(passes.forward(inputs_of(1.0))) for passes in held] == [2, 2]
    extra = graphs.passes("a", Counting, CPU)
    assert float(extra.forward(inputs_of(5.0))) == 10, "no room: it runs plainly"
    assert isinstance(extra, Counting)
    del held
    gc.collect()
    assert not isinstance(graphs.passes("a", Counting, CPU), Counting)
    assert graphs.clear()
    assert not graphs.clear()


def test_functions_are_recorded_by_shape():
    graphs, calls = Graphs(Emulated), []

    def work(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        return a * b, a.sum()

    for value in range(1, 5):
        for size in (2, 3):
            a = torch.full((size,), float(value))
            product, total = graphs.call("work", work, (a, a), CPU)
            assert product.tolist() == [value**2] * size and float(total) == value * size
    assert len(calls) == 4 and graphs.recorded == 2


def test_training_steps_and_logits(recording):
    network, theta = make("gray28")
    task = Task(network, CPU, torch.float64)
    ours, truth = select("triton", task), select("autograd", task)
    for hard in (True, False):
        for seed in range(4):
            images, labels = batch_of("gray28", 5, hard=hard, seed=seed)
            loss, gradient = ours.loss_and_grad(task, theta[0], images, labels)
            expected_loss, expected = truth.loss_and_grad(task, theta[0], images, labels)
            assert float(loss) == pytest.approx(float(expected_loss), rel=1e-12)
            assert relative_error(gradient, expected) < STEP
            logits = ours.loss_grad_logits(task, theta[0], images, labels)[2]
            assert relative_error(logits, truth.forward(task, theta[0], images)) < STEP
    assert recording.graphs.recorded == 2
    assert relative_error(ours.forward(task, theta[0], images), truth.forward(task, theta[0], images)) < STEP


def stacked_step_of(engine: Engine, task: Task, *, shared: bool, hard: bool) -> list[tuple[Tensor, Tensor]]:
    """(together, one by one) for losses, gradients and logits of a step and for the logits of a forward pass."""
    theta = task.network.initial()
    theta = torch.stack([theta + 0.1 * k * theta.abs().mean() * torch.randn_like(theta) for k in range(3)])
    batches = [batch_of("gray28", 5, hard=hard, seed=0 if shared else k) for k in range(3)]
    images = batches[0][0].expand(3, -1, -1, -1, -1) if shared else torch.stack([x for x, _ in batches])
    labels = torch.stack([y for _, y in batches])
    together = (
        *engine.stacked_loss_grad_logits(task, theta, images, labels),
        engine.stacked_forward(task, theta, images),
    )
    truth = select("autograd", task)
    alone = [
        (*truth.loss_grad_logits(task, *one), truth.forward(task, *one[:2]))
        for one in zip(theta, images, labels, strict=True)
    ]
    return list(zip(together, (torch.stack(parts) for parts in zip(*alone, strict=True)), strict=True))


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("shared", [False, True], ids=["own images", "shared images"])
def test_networks_trained_together_equal_one_by_one(recording, monkeypatch, shared, hard):
    network, _ = make("gray28")
    task = Task(network, CPU, torch.float64)
    for part in (1 << 40, recording._steps(task).working_bytes(3, 3, 8)):
        monkeypatch.setattr("pad_fast.engines.triton.engine._WORKING_BYTES", part)
        for _ in range(3):  # plainly, recorded, replayed
            for ours, truth in stacked_step_of(recording, task, shared=shared, hard=hard):
                assert ours.shape == truth.shape
                for got, expected in zip(ours, truth, strict=True):
                    assert relative_error(got, expected) < STEP, describe_difference(got, expected)
        recording.graphs.clear()
    assert recording._part(task, torch.empty(3, 5, 1, dtype=torch.float64)) == 3, "the second time in parts of 3 and 2"


def test_every_engine_trains_networks_together():
    network, _ = make("gray28")
    for backend in ("cpu", "autograd"):
        if backend == "cpu" and not extension.available():
            continue
        task = Task(network, CPU, torch.float64)
        for ours, truth in stacked_step_of(select(backend, task), task, shared=False, hard=True):
            assert relative_error(ours, truth) < STEP


@pytest.mark.parametrize("optimizer", [GSAM(0.05, rho=0.02, alpha=0.4), SGD(0.05, momentum=0.9, weight_decay=1e-3)])
def test_whole_epochs(recording, monkeypatch, optimizer):
    images, labels = batch_of("digits", 11, hard=True)
    ends = []
    for backend in ("triton", "autograd"):
        torch.manual_seed(0)
        net = FlatNetwork(ConvNet(**NETS["digits"]))
        trainer = Trainer(net, device=CPU, backend=backend)
        optimizer._buffer = None
        for _ in range(2):
            batches = torch.arange(11).split(4)
            trainer.epoch(images.float(), labels, batches, optimizer)
        ends.append(trainer.theta - net.initial())
    assert relative_error(ends[0], ends[1]) < 1e-4
    assert recording.graphs.recorded == 2, "the usual batch and the short last one"


def test_strided_inputs_are_understood(engine):
    network, theta = make("odd33")
    images, labels = batch_of("odd33", 4)
    task = Task(network, CPU, torch.float64)
    expected = engine.loss_and_grad(task, theta[0], images, labels)[1]
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    every_other = torch.stack([theta[0], theta[0]], 1)[:, 0]
    assert not strided.is_contiguous() and not every_other.is_contiguous()
    assert torch.equal(engine.loss_and_grad(task, every_other, strided, labels)[1], expected)


def test_nan_is_not_hidden(engine):
    network, theta = make("digits")
    images, labels = batch_of("digits", 4)
    theta[0, 5] = float("nan")
    task = Task(network, CPU, torch.float64)
    loss, gradient = engine.loss_and_grad(task, theta[0], images, labels)
    assert bool(loss.isnan()) and not bool(gradient.isfinite().all())


class Cramped:
    """Operations on a device whose memory holds only so many elements of kept convolutions and of one image batch."""

    def __init__(self, *, images: int, kept: int = 10**9) -> None:
        self.naive, self.images, self.kept = Operations(naive=True), images, kept
        self.seen: list[int] = []
        self.alive: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.naive, name)

    @property
    def conv(self) -> Any:
        return _CrampedConv(self)


class _CrampedConv:
    def __init__(self, device: Cramped) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device.naive.conv, name)

    def forward(self, h: Tensor, w: Tensor, **options: Any) -> Tensor:
        import weakref

        device = self.device
        device.seen.append(h.shape[1])
        device.alive = [ref for ref in device.alive if ref() is not None]
        taken = sum(ref().numel() for ref in device.alive)
        if h.shape[1] > device.images or taken > device.kept:
            raise torch.OutOfMemoryError("CUDA out of memory (injected)")
        z = device.naive.conv.forward(h, w, **options)
        device.alive.append(weakref.ref(z))
        return z


def test_out_of_memory_halves_the_batch_and_says_so_once(monkeypatch, caplog):
    cramped = Cramped(images=2)
    engine = _register(monkeypatch, TritonEngine(cramped))
    problem = problem_of()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        for _ in range(2):
            assert_same(gradients(problem, backend="triton"), gradients(problem, gradient="unroll"))
    assert [record.getMessage() for record in caplog.records] == [
        "GPU memory ran out: batches are taken in parts of at most 1 images"
    ]
    assert max(cramped.seen[-4:]) == 1
    task = Task(problem["model"], CPU, torch.float64)
    assert len(engine.forward(task, problem["theta_start"][0], problem["images"])) == 9


def test_out_of_memory_gives_up_kept_activations_first(monkeypatch, caplog):
    # The four steps keep 3, 1, 9 and 2 times 3 * 4 * 4 * 8 = 384 elements.
    cramped = Cramped(images=9, kept=384 * 12)
    engine = _register(monkeypatch, TritonEngine(cramped))
    problem = problem_of()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert_same(gradients(problem, backend="triton", cache=1 << 30), gradients(problem, gradient="unroll"))
    assert [record.getMessage() for record in caplog.records] == [
        "GPU memory ran out: activations are computed again instead of kept (cache=0)"
    ]
    assert engine._limit(Task(problem["model"], CPU, torch.float64)).images is None
    assert_same(gradients(problem, backend="triton", cache=1 << 30), gradients(problem, gradient="unroll"))


def test_out_of_memory_with_one_image_is_an_error(monkeypatch):
    _register(monkeypatch, TritonEngine(Cramped(images=0)))
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        gradients(problem_of(), backend="triton")


def test_sizes_of_what_is_kept_and_what_is_alive():
    steps = Steps(Operations(naive=True), ConvNet().config, "ieee")
    assert steps.kept_bytes(1, 1, 4) == 4 * 128 * (16 * 16 + 8 * 8)
    assert steps.kept_bytes(3, 10, 4) == 30 * steps.kept_bytes(1, 1, 4)
    assert steps.working_bytes(1, 1, 4) > 4 * steps.kept_bytes(1, 1, 4)


class Rounding:
    """Operations whose convolutions round what they multiply, as the matrix units do, in otherwise exact arithmetic."""

    def __init__(self, precision: str) -> None:
        self.naive, self.bits = Operations(naive=True), {"tf32": 10, "bf16": 7}[precision]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.naive, name)

    @property
    def conv(self) -> Any:
        return _RoundingConv(self)


class _RoundingConv:
    def __init__(self, owner: Rounding) -> None:
        self.owner = owner

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.owner.naive.conv, name)
        return lambda *args, **options: operation(*(self._round(value) for value in args), **options)

    def _round(self, value: Any) -> Any:
        if isinstance(value, tuple):  # packed weights
            return type(value)(*(self._round(part) for part in value))
        if not isinstance(value, Tensor) or value.dim() < 4:  # flat parameters and gradients are kept
            return value
        mantissa, exponent = torch.frexp(value)
        scale = 2.0 ** (self.owner.bits + 1)  # and the leading bit
        return torch.ldexp((mantissa * scale).round() / scale, exponent)


@pytest.mark.parametrize(
    ("precision", "least", "bound"), [("ieee", 1e-8, 1e-2), ("tf32", 1e-4, 5e-2), ("bf16", 1e-4, 0.2)]
)
def test_how_much_a_precision_costs(monkeypatch, precision, least, bound):
    """One step of the 32-pixel ConvNet against float64: what docs/gpu_engine.md says of each precision."""
    torch.manual_seed(0)
    network = FlatNetwork(ConvNet(width=64).double())
    theta = network.initial()[None]
    theta = theta + 0.1 * theta.abs().mean() * torch.randn_like(theta)
    images, labels = torch.randn(4, 3, 32, 32).double(), 1.5 * torch.randn(4, 10).double()
    truth = step_of("autograd", network, theta, images, labels)
    if precision == "ieee":
        _register(monkeypatch, TritonEngine(Operations(naive=True)))
        ours = step_of("triton", network, theta.float(), images.float(), labels.float(), precision="ieee")
    else:
        _register(monkeypatch, TritonEngine(Rounding(precision)))
        ours = step_of("triton", network, theta, images, labels)
    errors = {key: relative_error(ours[key], truth[key]) for key in truth}
    print(precision, {key: f"{error:.1e}" for key, error in errors.items()})
    assert max(errors.values()) < bound and min(errors.values()) > least, errors


def test_refusals():
    net = ConvNet(width=4)
    real = TritonEngine()
    naive = TritonEngine(Operations(naive=True))

    def refusal(engine: TritonEngine, module: nn.Module = net, **task: Any) -> str:
        given = {"device": CPU, "dtype": torch.float32, **task}
        return engine.refuse(Task(FlatNetwork(module), **given)) or ""

    if os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        assert "needs a CUDA device" in refusal(real)
    if not torch.cuda.is_available():
        assert "no CUDA device" in refusal(real, device=torch.device("cuda"))
    assert refusal(naive) == ""
    assert refusal(naive, dtype=torch.float64) == ""
    assert refusal(naive, dtype=torch.float64, precision="ieee") == ""
    assert "not torch.float16" in refusal(naive, dtype=torch.float16)
    assert "not 'fast'" in refusal(naive, precision="fast")
    assert "float64 is computed" in refusal(naive, dtype=torch.float64, precision="tf32")
    assert "not batch norm" in refusal(naive, ConvNet(width=4, norm="batch"))
    assert "Sequential is not" in refusal(naive, nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))


def test_auto_never_interprets(engine, monkeypatch):
    task = Task(FlatNetwork(ConvNet(width=4)), CPU, torch.float32)
    assert engine.refuse(task) is None
    with record_backends() as used:
        select("auto", task)
        select("auto", Task(task.network, CPU, torch.float32, precision="ieee"))
        select("triton", task)
    assert used[1:] == ["autograd", "triton"] and used[0] != "triton"


def test_refusals_of_devices(monkeypatch):
    net = FlatNetwork(ConvNet(width=4))
    task = Task(net, torch.device("cuda", 0), torch.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match="Tesla T4 has compute capability 7.5; 8.0 is needed"):
        select("triton", task)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert select("triton", task).name == "triton"
    assert select("auto", task).name == "autograd", "until it has run on a GPU it must be asked for"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match="Triton is not installed"):
        select("triton", task)
    assert select("auto", task).name == "autograd"


INTERPRETED = """
import sys, torch
from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import record_backends
from pad_fast.kernels import augment as kernels
from tests.support.comparison import relative_error

CASES = {
    "soft": (dict(channels=2, width=5, resolution=7), dict(mask=ParameterMask.loss(0.3)), 0),
    "hard": (dict(channels=1, width=4, resolution=8), dict(mask=ParameterMask.layers(1), cache=1 << 20), 1),
    "many channels": (dict(channels=9, width=3, resolution=5, depth=1), dict(cache=1 << 20), 0),
    "dsa": (dict(channels=3, width=4, resolution=6, depth=1), dict(augment=DSA().seeded(5)), 0),
}
net, options, hard = CASES[sys.argv[1]]
net = ConvNet(**{"classes": 3, "depth": 2, **net}).double()
torch.manual_seed(0)
theta = torch.stack([torch.cat([p.detach().flatten() for p in net.parameters()])] * 2)
theta = theta + 0.05 * torch.randn_like(theta)
target = theta + 0.1 * torch.randn_like(theta)
size = net.config.resolution
images, lr = torch.randn(3, net.config.channels, size, size).double(), torch.tensor(0.3).double()
labels = torch.tensor([2, 0, 1]) if hard else torch.randn(3, 3).double()
table = kernels.naive_draw(torch.tensor(5), steps=2, batch=3, shape=(size, size))
results = []
for backend, gradient in (("triton", "exact"), ("autograd", "unroll")):
    leaves = [t.clone().requires_grad_() for t in ((images, lr) if hard else (images, lr, labels))]
    if gradient == "unroll" and "augment" in options:
        options = {"augment": lambda x, step: kernels.naive_apply(x, table[step, 0, : len(x)])}
    with record_backends() as used:
        losses = trajectory_matching_loss(
            net, theta, target, leaves[0], labels if hard else leaves[2], leaves[1],
            batches=[torch.tensor([0, 2]), torch.arange(3)], gradient=gradient, backend=backend, **options)
    assert used == [backend], used
    results.append([losses.detach(), *torch.autograd.grad(losses.sum(), leaves)])
errors = [relative_error(a, b) for a, b in zip(*results)]
assert max(errors) < 1e-9, errors
print("same")
"""


@pytest.mark.parametrize(
    "case",
    ["soft", "dsa", *(pytest.param(case, marks=pytest.mark.slow) for case in ("hard", "many channels"))],
)
def test_kernels_in_the_interpreter(case):
    """The real kernels under the engine, in Triton's interpreter, which has to be chosen before Triton is imported."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, case],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "same", done.stderr[-3000:]
