"""Exact or refused: networks with state, randomness and odd parts, and scripts that change things in between."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pad_fast import ConvNet, trajectory_matching_loss
from pad_fast.engines import Adjoint, Student, Wants, record_backends
from pad_fast.errors import InputError
from pad_fast.matching import replay
from pad_fast.matching.replay import CheckedStudent
from pad_fast.models.flat import FlatNetwork

from ..support.comparison import relative_error
from ..support.exactness import KINDS, Kind, Layer, Tokens, body, flat, kinds_table, problem, usual_loop
from ..support.paths import ROOT

TOLERANCE = 1e-9  # relative L2 in float64; worst seen 5e-16
LEARNED = ("images", "labels", "lr")


def seeded(call: Callable[[], Tensor]) -> Tensor:
    """A loss whose draws are the same as those of any other one made by this."""
    torch.manual_seed(7), random.seed(7), np.random.seed(7)
    return call()


def gradients(loss: Tensor, given: dict[str, Any]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [given[name] for name in LEARNED]))


def differences(got: list[Tensor], expected: list[Tensor]) -> float:
    return max(relative_error(*each) for each in zip(got, expected, strict=True))


def conv_net() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8).double()


def made(kind: Kind) -> nn.Module:
    torch.manual_seed(0)
    network = kind.make()
    return network if kind.refused is not None else network.double()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.says)
def test_every_kind_is_exact_or_refused(kind: Kind) -> None:
    network = made(kind)
    if kind.refused is not None:
        lazy = any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters())
        real = network if not lazy and not any(p.is_complex() for p in network.parameters()) else body()
        given = problem(real if flat(real).dtype == torch.float64 else real.double())
        with pytest.raises(InputError, match=kind.refused):
            gradients(seeded(lambda: trajectory_matching_loss(network, **given)), given)
        return
    given, inside = problem(network), getattr(network, "_orig_mod", network)
    reference = copy.deepcopy(inside.module if isinstance(inside, nn.DataParallel) else inside)
    expected = gradients(seeded(lambda: usual_loop(reference, **given)), given)
    with record_backends() as used:
        loss = seeded(lambda: trajectory_matching_loss(network, **given))
    assert used == ["autograd"]
    assert differences(gradients(loss, given), expected) < TOLERANCE
    buffers = dict((inside.module if isinstance(inside, nn.DataParallel) else inside).named_buffers())
    for name, buffer in reference.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.refused and "computed another" in kind.refused],
                         ids=lambda kind: kind.says)  # fmt: skip
def test_the_way_out_of_a_refusal_works(kind: Kind, shapes_unchecked: None) -> None:
    # Checking shapes draws from Python's generator, too.
    network = made(kind).double()
    given, reference = problem(network), copy.deepcopy(network.cpu()) if "own" not in kind.says else network
    if reference is network:
        pytest.skip("its generator cannot be copied; the others show the advice")
    expected = gradients(seeded(lambda: usual_loop(reference, **given)), given)
    loss = seeded(lambda: trajectory_matching_loss(network, gradient="unroll", **given))
    assert differences(gradients(loss, given), expected) < TOLERANCE


def test_the_table_of_the_documents_is_what_is_tested_here() -> None:
    page = (ROOT / "docs" / "gradient.md").read_text(encoding="utf-8")
    written = page.partition("<!-- kinds -->\n")[2].partition("<!-- end of kinds -->")[0]
    assert written == kinds_table()


@pytest.mark.parametrize("stacked", [False, True])
def test_state_with_several_trajectories_and_a_backward_much_later(stacked: bool) -> None:
    """Each call's second evaluations see its own buffers, whatever was run in between."""
    torch.manual_seed(0)
    network = body(nn.BatchNorm2d(4), nn.Dropout(0.3)).double()
    givens = [problem(network, seed=seed) for seed in (1, 2)]
    for given in givens if stacked else ():
        given["theta_start"] = torch.stack([given["theta_start"], given["theta_target"]])
        given["theta_target"] = torch.stack([given["theta_target"], given["theta_target"] + 0.1])
    expected = []
    reference = copy.deepcopy(network)
    torch.manual_seed(7)
    losses = [trajectory_matching_loss(reference, gradient="unroll", **given).sum() for given in givens]
    expected = [gradients(loss, given) for loss, given in zip(losses, givens, strict=True)]
    if stacked:  # the oracle takes trajectories one after the other, steps of ours go side by side
        return
    torch.manual_seed(7)
    losses = [trajectory_matching_loss(network, **given).sum() for given in givens]
    network.eval()(3 * torch.randn(8, 1, 8, 8, dtype=torch.float64) + 1)
    for loss, given, truth in zip(losses, givens, expected, strict=True):
        assert differences(gradients(loss, given), truth) < TOLERANCE


def test_the_check_fails_on_one_wrong_step() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls, self.head = 0, nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.head(x.flatten(1)) * (1.000001 if self.calls == 4 else 1)  # step 3, the first time only

    network = Switched().double()
    given = problem(network)
    with pytest.raises(InputError, match="when step 3 was evaluated again"):
        trajectory_matching_loss(network, **given).backward()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("answers", ["labels", "its own answers"])
@pytest.mark.parametrize("depth", [2, 3])
def test_rounding_is_no_reason_to_refuse(
    threads: int, answers: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes may take sums in different orders: here, with one thread, torch's convolutions do.

    Less than a tenth of what is allowed is used, because other processors have other orders.
    """
    rounding = replay._rounding
    monkeypatch.setattr(replay, "_rounding", lambda gradient: rounding(gradient) / 100)
    before = torch.get_num_threads()
    torch.manual_seed(0)
    network, images = ConvNet(depth=depth), torch.randn(10, 3, 32, 32, requires_grad=True)
    theta, lr = flat(network), torch.tensor(1e-3, requires_grad=True)
    with torch.no_grad():
        labels = network(images) if answers == "its own answers" else torch.randn(10, 10)
    try:
        torch.set_num_threads(threads)
        loss = trajectory_matching_loss(
            network, theta, theta + 0.01, images, labels, lr, batches=[torch.arange(10)] * 4, backend="autograd"
        )
        loss.backward()
    finally:
        torch.set_num_threads(before)
    assert images.grad is not None and images.grad.norm() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True])
def test_mixed_precision_is_no_reason_to_refuse(dtype: torch.dtype, inside: bool) -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = ConvNet(depth=2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=inside):
                found: Tensor = self.body(x).float()
                return found

    torch.manual_seed(0)
    network, images = Inside(), torch.randn(10, 3, 32, 32, requires_grad=True)
    theta, lr = flat(network), torch.tensor(1e-3)
    with torch.autocast("cpu", dtype, enabled=not inside):
        loss = trajectory_matching_loss(
            network, theta, theta + 0.01, images, torch.randn(10, 10), lr, batches=[torch.arange(10)] * 3,
            backend="autograd",
        )  # fmt: skip
    loss.backward()
    assert images.grad is not None and images.grad.norm() > 0


@pytest.mark.parametrize("share", [2e-3, 2e-2, 0.3])
@pytest.mark.parametrize("size", [7, 300, 40_000])
def test_the_check_sees_a_gradient_that_is_slightly_another_one(share: float, size: int) -> None:
    """In float32, where rounding is near; whichever numbers differ, and however they lean."""
    draws = torch.Generator().manual_seed(0)
    gradient = torch.randn(2, size, generator=draws)

    class Given(Student):
        def gradient(self, *_: Any) -> Tensor:
            return gradient

        def adjoint(self, *_: Any) -> Adjoint:
            return Adjoint(torch.zeros(2), None, None, None, again)

    def check() -> None:
        checked = CheckedStudent(Given(), FlatNetwork(nn.Linear(1, 1)), steps=3)
        for step in range(3):
            checked.gradient(step, gradient, gradient, gradient)
        checked.adjoint(1, gradient, gradient, gradient, gradient, Wants())
        checked.end()

    again = gradient * (1 + 1e-6 * torch.randn(2, size, generator=draws))
    check()
    several = torch.arange(size) % 3 == 0
    noise = torch.randn(2, size, generator=draws)
    for difference in (noise, noise.abs(), noise * several, gradient, gradient.roll(1, 1), gradient.flip(1) - gradient):
        again = gradient + share * difference * gradient.norm() / difference.norm()
        with pytest.raises(InputError, match="when step 1 was evaluated again"):
            check()


@pytest.mark.parametrize("change", ["eval", "train", "statistics", "autocast", "rate", "layer"])
def test_changes_between_the_passes_are_undone_or_refused(change: str) -> None:
    torch.manual_seed(0)
    network = body(nn.BatchNorm2d(4), nn.Dropout(0.5)).double().train(change not in ("train", "statistics"))
    given, reference = problem(network), copy.deepcopy(network)
    expected = gradients(seeded(lambda: usual_loop(reference, **given)), given)
    loss = seeded(lambda: trajectory_matching_loss(network, **given))
    if change in ("eval", "train"):
        network.train(change == "train")
    elif change == "statistics":
        network.train()(3 * torch.randn(8, 1, 8, 8, dtype=torch.float64) + 1)
        network.eval()
    elif change == "rate":
        network[2].p = 0.1
    elif change == "layer":
        network[3] = nn.Sigmoid()
    before = [module.training for module in network.modules()]
    if change in ("rate", "layer"):
        with pytest.raises(InputError, match="was changed between the call and backward"):
            gradients(loss, given)
        return
    with torch.autocast("cpu", enabled=change == "autocast"):
        found = gradients(loss, given)
    assert differences(found, expected) < TOLERANCE
    assert [module.training for module in network.modules()] == before


def test_autocast_of_the_forward_pass_holds_in_the_reverse_pass() -> None:
    torch.manual_seed(0)
    network = body()
    given = problem(network, dtype=torch.float32)
    reference = copy.deepcopy(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = gradients(usual_loop(reference, **given), given)
        loss = trajectory_matching_loss(network, **given)
    assert differences(gradients(loss, given), expected) < 0.02  # bfloat16: rounding alone
    with pytest.raises(AssertionError):
        assert differences(gradients(trajectory_matching_loss(network, **given), given), expected) < 1e-4


def test_threads_take_turns_where_they_share_generators_and_modules() -> None:
    shared = body(nn.Dropout(0.5)).double()
    own = [body(nn.Dropout(0.5)).double() for _ in range(2)]
    failures: list[BaseException] = []

    def run(network: nn.Module, seed: int) -> None:
        try:
            for _ in range(10):
                given = problem(network, seed=seed)
                gradients(trajectory_matching_loss(network, **given), given)  # the check compares every step
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(network, seed)) for seed, network in enumerate([*own, shared, shared])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_one_module_in_two_threads_gives_each_its_own_gradient() -> None:
    network = body().double()
    givens = [problem(network, seed=seed) for seed in range(4)]
    for seed, given in enumerate(givens):
        given["theta_start"] = given["theta_start"] + 0.1 * seed
    expected = [gradients(usual_loop(copy.deepcopy(network), **given), given) for given in givens]
    worst: list[float] = []

    def run(given: dict[str, Any], truth: list[Tensor]) -> None:
        for _ in range(8):
            worst.append(differences(gradients(trajectory_matching_loss(network, **given), given), truth))

    threads = [threading.Thread(target=run, args=each) for each in zip(givens, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 32 and max(worst) < TOLERANCE


@pytest.mark.parametrize("make", [body, conv_net], ids=["any module", "native"])
def test_a_second_derivative_is_refused_and_the_way_out_works(make: Callable[[], nn.Module]) -> None:
    network = make().double()
    given = problem(network)

    def penalised(loss: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss, given["images"], create_graph=True)
        return torch.autograd.grad(loss + 10 * gradient.square().sum(), given["images"])[0]

    with pytest.raises(InputError, match="differentiated once.*gradient='unroll'"):
        penalised(trajectory_matching_loss(network, **given))
    expected = penalised(usual_loop(copy.deepcopy(network), **given))
    assert (
        relative_error(penalised(trajectory_matching_loss(network, gradient="unroll", **given)), expected) < TOLERANCE
    )
    plain = trajectory_matching_loss(network, **given)
    plain.backward()
    assert given["images"].grad is not None


@pytest.mark.parametrize("fixed", [False, True], ids=["learned images", "fixed images"])
@pytest.mark.parametrize("make", [body, conv_net], ids=["any module", "native"])
def test_tensors_that_an_augmentation_captures_get_their_gradient(make: Callable[[], nn.Module], fixed: bool) -> None:
    network = make().double()
    given = problem(network)
    if fixed:
        given = {name: value.detach() if isinstance(value, Tensor) else value for name, value in given.items()}
    decoder = nn.Conv2d(1, 1, 3, padding=1).double()
    raw = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    strength = raw.exp()  # its graph is shared by all steps

    def augment(images: Tensor, step: int) -> Tensor:
        return decoder(images) * strength + 0.1 * step * raw

    learned = [*decoder.parameters(), raw, *([] if fixed else [given[name] for name in LEARNED])]
    expected = torch.autograd.grad(
        usual_loop(copy.deepcopy(network), augment=augment, **given), learned, retain_graph=True
    )
    loss = trajectory_matching_loss(network, augment=augment, **given)
    found = torch.autograd.grad(loss, learned, retain_graph=True)
    assert max(relative_error(*each) for each in zip(found, expected, strict=True)) < TOLERANCE


def test_a_retained_graph_is_pulled_back_again() -> None:
    network = next(kind for kind in KINDS if kind.says == "buffers that count calls").make().double()
    given, strength = problem(network), torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    loss = trajectory_matching_loss(network, augment=lambda x, t: x * strength, **given)
    learned = [given[name] for name in LEARNED] + [strength]
    first = torch.autograd.grad(loss, learned, retain_graph=True)
    again = torch.autograd.grad(loss, learned)
    assert all(torch.equal(*each) for each in zip(first, again, strict=True))


def test_a_tensor_that_only_a_later_step_uses_is_refused_and_can_be_named() -> None:
    network = body().double()
    given = problem(network)
    strengths = [torch.tensor(1.0 + step, dtype=torch.float64, requires_grad=True) for step in range(4)]

    def augment(images: Tensor, step: int) -> Tensor:
        return images * strengths[step]

    with pytest.raises(InputError, match=r"augment, in step 3, uses a tensor of shape \[\].*Name it in parameters="):
        trajectory_matching_loss(network, augment=augment, **given).backward()
    expected = torch.autograd.grad(usual_loop(network, augment=augment, **given), strengths)
    loss = trajectory_matching_loss(network, augment=augment, parameters=strengths, **given)
    found = torch.autograd.grad(loss, strengths)
    assert max(relative_error(*each) for each in zip(found, expected, strict=True)) < TOLERANCE


def _erase(images: Tensor, step: int) -> Tensor:
    images[:, :, step : step + 2] = 0
    return images


@pytest.mark.parametrize(
    "augment",
    [lambda x, t: x.clamp_(-1, 1), lambda x, t: x.mul_(2), _erase, lambda x, t: x.flip(3).add_(0.1 * t).abs_()],
    ids=["clamp_", "mul_", "indexing", "flip and abs_"],
)
@pytest.mark.parametrize("make", [body, conv_net], ids=["any module", "native"])
def test_augmentations_may_work_in_place(make: Callable[[], nn.Module], augment: Any) -> None:
    network = make().double()
    given = problem(network)
    before = given["images"].detach().clone()
    expected = gradients(usual_loop(copy.deepcopy(network), augment=augment, **given), given)
    found = gradients(trajectory_matching_loss(network, augment=augment, **given), given)
    assert differences(found, expected) < TOLERANCE
    assert torch.equal(given["images"], before)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "strided", "channels_last"])
@pytest.mark.parametrize("make", [body, conv_net], ids=["any module", "native"])
def test_inputs_of_any_layout(make: Callable[[], nn.Module], layout: str) -> None:
    network = make().double()
    given = problem(network)
    base = given["images"].detach()
    leaf, view = {
        "expanded": (base[:1], lambda x: x.expand(6, -1, -1, -1)),
        "transposed": (base.transpose(2, 3).contiguous(), lambda x: x.transpose(2, 3)),
        "strided": (base.repeat(1, 1, 1, 2), lambda x: x[..., ::2]),
        "channels_last": (base.contiguous(memory_format=torch.channels_last), lambda x: x),
    }[layout]
    leaf = leaf.clone().requires_grad_()
    given["images"] = view(leaf)
    expected = torch.autograd.grad(usual_loop(copy.deepcopy(network), **given), leaf)[0]
    found = torch.autograd.grad(trajectory_matching_loss(network, **given), leaf)[0]
    assert relative_error(found, expected) < TOLERANCE


def test_what_cannot_be_recorded_is_refused_in_our_words() -> None:
    network = body().double()
    given = problem(network)
    with torch.inference_mode():
        inference = given["theta_start"] * 1
    with pytest.raises(InputError, match=r"theta_start was made under torch.inference_mode.*theta_start.clone\(\)"):
        trajectory_matching_loss(network, **{**given, "theta_start": inference})
    trajectory_matching_loss(network, **{**given, "theta_start": inference.clone()}).backward()
    with pytest.raises(InputError, match="inside a torch.func transform"):
        torch.func.grad(lambda x: trajectory_matching_loss(network, **{**given, "images": x}))(given["images"].detach())


@pytest.mark.parametrize("value", [-100, -1, 3, 9])
@pytest.mark.parametrize("make", [body, conv_net], ids=["any module", "native"])
@pytest.mark.parametrize("gradient", ["exact", "unroll"])
def test_labels_that_are_no_class(make: Callable[[], nn.Module], value: int, gradient: str) -> None:
    network = make().double()
    given = {**problem(network), "labels": torch.tensor([0, 1, 2, 0, 1, value])}
    with pytest.raises(InputError, match=r"hard labels run from|none of the 3 classes"):
        trajectory_matching_loss(network, gradient=gradient, **{**given, "batches": [torch.arange(6)]})


# ------------------------------------------------------------------------------------------------ networks at random

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "no statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "cumulative batch norm": lambda: nn.BatchNorm2d(4, momentum=None),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "dropout": lambda: nn.Dropout(0.4),
    "alpha dropout": lambda: nn.AlphaDropout(0.2),
    "dropout2d": lambda: nn.Dropout2d(0.4),
    "random relu": lambda: nn.RReLU(),
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "spectral conv": lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, padding=1)),
    "weight norm conv": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    "softplus": lambda: nn.Softplus(),
    "gelu": lambda: nn.GELU(),
    "elu": lambda: nn.ELU(),
    "prelu": lambda: nn.PReLU(4),
    "moving average": lambda: next(kind for kind in KINDS if kind.says == "moving averages in buffers").make()[1],
    "counted": lambda: next(kind for kind in KINDS if kind.says == "buffers that count calls").make()[1],
    "noise": lambda: Layer(lambda layer, x: x + 0.1 * torch.randn_like(x)),
    "skipped at random": lambda: Layer(lambda layer, x: x if torch.rand(()) < 0.5 else x * 1.5),
    "local response": lambda: nn.LocalResponseNorm(2),
    "random numbers of Python": lambda: Layer(lambda layer, x: x * (1 + random.random())),
    "random numbers of numpy": lambda: Layer(lambda layer, x: x * (1 + float(np.random.rand()))),
    "counted by Python": lambda: next(kind for kind in KINDS if "Python attribute" in kind.says).make()[1],
}
REFUSED = {"random numbers of Python", "random numbers of numpy", "counted by Python"}


def random_network(seed: int, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """A network of up to five layers drawn from the table, some in eval mode, and their names."""
    draws = random.Random(seed)
    names = draws.choices(sorted(LAYERS), k=draws.randint(1, 5))
    torch.manual_seed(seed)
    network = body(*(LAYERS[name]() for name in names))
    if draws.random() < 0.2:
        names.append("attention")
        attention = Tokens(nn.TransformerEncoderLayer(16, 2, 16, dropout=draws.choice([0.0, 0.2]), batch_first=True))
        both = Layer(lambda layer, x: layer.one(x) + layer.two(x), one=network, two=attention)
        network = both
    network.to(dtype)
    for module in network.modules():
        if draws.random() < 0.15:
            module.training = False
    return network, names


def compare_at_random(seed: int, dtype: torch.dtype) -> None:
    network, names = random_network(seed, dtype)
    print(f"seed {seed}: {', '.join(names)}")
    draws = random.Random(-seed)
    given = problem(network, seed=seed, steps=draws.randint(1, 4), dtype=dtype)
    reference = copy.deepcopy(network)
    expected = gradients(seeded(lambda: usual_loop(reference, **given)), given)
    augment = None
    try:
        loss = seeded(lambda: trajectory_matching_loss(network, augment=augment, **given))
        change = draws.choice(["nothing", "eval", "train", "call", "draw"])
        if change in ("eval", "train"):
            network.train(change == "train")
        elif change == "call":
            network(torch.randn(4, 1, 8, 8, dtype=dtype))
        elif change == "draw":
            torch.rand(5)
        found = gradients(loss, given)
    except InputError as error:
        assert REFUSED & set(names), f"refused without a reason: {error}"
        return
    tolerance = TOLERANCE if dtype == torch.float64 else 1e-4
    assert differences(found, expected) < tolerance, f"{names}, {change} in between"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("seed", range(20))
def test_random_networks_are_exact_or_refused(seed: int, dtype: torch.dtype) -> None:
    compare_at_random(seed, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_three_hundred_random_networks_are_exact_or_refused(block: int) -> None:
    for seed in range(100 + 30 * block, 130 + 30 * block):
        compare_at_random(seed, torch.float64 if seed % 3 else torch.float32)
