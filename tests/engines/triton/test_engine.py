"""The Triton engine with naive twins, in float64 on the CPU: whole unrolls, memory, and what it refuses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import Task, record_backends, select
from pad_fast.engines.triton import verdicts
from pad_fast.engines.triton.engine import TritonEngine
from pad_fast.engines.triton.operations import Operations
from pad_fast.errors import BackendError
from pad_fast.models import FlatNetwork

from ...support.comparison import relative_error
from ...support.golden import CASES, arguments_of, network_of, served_natively
from ...support.paths import ROOT
from ...support.triton import (
    ALL,
    BATCHES,
    CPU,
    STEP,
    WEIGHT,
    assert_same,
    gradients,
    problem_of,
    register,
)

pytest.importorskip("triton", reason="the kernels' modules import Triton")


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
    engine = register(monkeypatch, TritonEngine(cramped))
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
    engine = register(monkeypatch, TritonEngine(cramped))
    problem = problem_of()
    with caplog.at_level(logging.WARNING, "pad_fast"):
        assert_same(gradients(problem, backend="triton", cache=1 << 30), gradients(problem, gradient="unroll"))
    assert [record.getMessage() for record in caplog.records] == [
        "GPU memory ran out: activations are computed again instead of kept (cache=0)"
    ]
    assert engine._limit(Task(problem["model"], CPU, torch.float64)).images is None
    assert_same(gradients(problem, backend="triton", cache=1 << 30), gradients(problem, gradient="unroll"))


def test_out_of_memory_with_one_image_is_an_error(monkeypatch):
    register(monkeypatch, TritonEngine(Cramped(images=0)))
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        gradients(problem_of(), backend="triton")


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
    asked = []
    for objection, name in (("its kernels are wrong", "autograd"), (None, "triton")):
        monkeypatch.setattr(verdicts, "objection", lambda device, said=objection: asked.append(device) or said)
        assert select("auto", task).name == name
    assert asked == [torch.device("cuda", 0)] * 2, "a card has to pass its check"
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
