"""`trajectory_matching_loss`: the constant-memory gradient against autograd through the whole loop, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.engines import backends, record_backends
from pad_fast.errors import BackendError, InputError
from pad_fast.matching import normalized_distance
from pad_fast.models import FlatNetwork
from pad_fast.models.selection import keep_largest

from ..support.comparison import describe_difference, relative_error
from ..support.native import require_native

TOLERANCE = 1e-9  # relative L2 in float64; worst seen 2e-13


class FlatWrapper(nn.Module):
    """The student of published scripts: one flat vector, passed to forward as `flat_param=`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        flat = FlatNetwork(module)
        self.flat_param = nn.Parameter(flat.initial())
        self.inner = [flat]  # in a list, so that its parameters are not registered twice

    def forward(self, images: Tensor, flat_param: Tensor | None = None) -> Tensor:
        return self.inner[0](self.flat_param if flat_param is None else flat_param, images)


class SmallNet(nn.Module):
    """Not one of ours: strided convolution, batch norm, tanh, a parameter that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.stem(images))).mean((2, 3))
        return self.head(self.mix(torch.tanh(self.mix(h))))


def make_net(kind: str) -> tuple[nn.Module, int, int, int]:
    """A double-precision network with its channels, resolution and classes."""
    torch.manual_seed(11)
    if kind == "small":
        return SmallNet().double(), 2, 7, 4
    settings: dict[str, Any] = {"channels": 2, "classes": 4, "width": 5, "depth": 2, "resolution": 9}
    if kind == "convnet_bn":
        settings["norm"] = "batch"
    net = ConvNet(**settings).double()
    with torch.no_grad():  # norm scales and shifts away from 1 and 0, where mistakes hide
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return (FlatWrapper(net) if kind == "wrapper" else net), 2, 9, 4


def make_problem(kind: str = "convnet", *, hard: bool = False, stacked: int = 0, count: int = 7) -> dict[str, Any]:
    """Arguments with every scalar off its default and nothing degenerate."""
    net, channels, resolution, classes = make_net(kind)
    draws = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    theta = FlatNetwork(net).initial()
    if stacked:
        theta = theta + 0.05 * normal(stacked, len(theta))
    labels = torch.randint(0, classes, (count,), generator=draws) if hard else 1.5 * normal(count, classes)
    return {
        "model": net,
        "theta_start": theta,
        "theta_target": theta + 0.03 * normal(*theta.shape),
        "images": normal(count, channels, resolution, resolution),
        "labels": labels,
        "lr": torch.tensor(0.37, dtype=torch.float64),
        # A short batch, a repeated image inside a batch, and an image (6) that is never used.
        "batches": [torch.tensor([0, 3, 5]), torch.tensor([4]), torch.tensor([1, 2, 2, 0]), torch.tensor([5, 4])],
        "mask": ParameterMask.depth(0.3),
    }


def gradients(
    problem: dict[str, Any], inputs: tuple[str, ...], *, weight: Tensor | None = None, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and its gradient in each of `inputs`."""
    problem = {**problem, **options}
    for name in inputs:
        problem[name] = problem[name].detach().clone().requires_grad_()
    loss = trajectory_matching_loss(problem.pop("model"), **problem)
    weight = torch.ones_like(loss) if weight is None else weight
    grads = torch.autograd.grad(loss, [problem[name] for name in inputs], weight)
    return loss.detach(), dict(zip(inputs, grads, strict=True))


def assert_same(exact: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    for name, expected in truth.items():
        assert float(expected.norm()) > 1e-8, f"{name}: a zero gradient proves nothing"
        assert relative_error(exact[name], expected) < TOLERANCE, f"{name}: " + describe_difference(
            exact[name], expected
        )


ALL = ("images", "labels", "lr", "theta_start", "theta_target")


@pytest.mark.parametrize("kind", ["convnet", "convnet_bn", "small", "wrapper"])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_exact_equals_unroll(kind, hard):
    inputs = tuple(name for name in ALL if not (hard and name == "labels"))
    problem = make_problem(kind, hard=hard)
    loss, exact = gradients(problem, inputs)
    truth_loss, truth = gradients(problem, inputs, gradient="unroll")
    assert float(loss) == pytest.approx(float(truth_loss), rel=1e-12)
    assert_same(exact, truth)
    assert float(exact["images"][6].norm()) == 0, "an image in no batch has no gradient"


@pytest.mark.parametrize(
    "mask",
    [ParameterMask.none(), ParameterMask.depth(0.77), ParameterMask.loss(0.4), ParameterMask.layers(2)],
    ids=repr,
)
def test_every_mask(mask):
    problem = make_problem()
    loss, exact = gradients(problem, ALL, mask=mask)
    truth_loss, truth = gradients(problem, ALL, mask=mask, gradient="unroll")
    assert float(loss) == pytest.approx(float(truth_loss), rel=1e-12)
    assert_same(exact, truth)


@pytest.mark.parametrize("backend", ["autograd", "cpu"])
@pytest.mark.parametrize("mask", [ParameterMask.depth(0.3), ParameterMask.loss(0.4)], ids=repr)
@pytest.mark.parametrize("rate", [0.0, -0.08])
def test_a_rate_of_zero_or_below_goes_on(backend, mask, rate):
    """As in the scripts, whose learned rate is nobody's business; at zero only the rate itself has a way to go."""
    if backend == "cpu":
        require_native()
    problem = {**make_problem(stacked=2), "mask": mask, "lr": torch.tensor(rate, dtype=torch.float64)}
    weight = torch.tensor([0.7, -1.6], dtype=torch.float64)
    with record_backends() as used:
        loss, exact = gradients(problem, ALL, weight=weight, backend=backend)
    assert used == [backend]
    truth_loss, truth = gradients(problem, ALL, weight=weight, gradient="unroll")
    assert relative_error(loss, truth_loss) < 1e-12
    if rate == 0:
        assert torch.equal(loss, torch.ones_like(loss))
        for name in ("images", "labels"):
            assert not exact.pop(name).any() and not truth.pop(name).any(), name
        for name in ("theta_start", "theta_target"):  # the loss is 1 wherever they are, to rounding
            assert float(torch.maximum(exact.pop(name).abs(), truth.pop(name).abs()).max()) < 1e-12, name
    assert_same(exact, truth)


def test_stacked_trajectories_equal_one_by_one():
    problem = make_problem(stacked=3)
    weight = torch.tensor([1.0, -0.5, 2.5], dtype=torch.float64)
    loss, exact = gradients(problem, ALL, weight=weight)
    assert list(loss.shape) == [3]
    total: dict[str, Tensor] = {}
    for k in range(3):
        single = {**problem, "theta_start": problem["theta_start"][k], "theta_target": problem["theta_target"][k]}
        one_loss, one = gradients(single, ALL, weight=weight[k], gradient="unroll")
        assert float(one_loss) == pytest.approx(float(loss[k]), rel=1e-12)
        for name in ("images", "labels", "lr"):
            total[name] = total.get(name, torch.zeros_like(one[name])) + one[name]
        for name in ("theta_start", "theta_target"):
            assert relative_error(exact[name][k], one[name]) < TOLERANCE
    assert_same({name: exact[name] for name in total}, total)


@pytest.mark.parametrize(
    "mask",
    [ParameterMask.none(), ParameterMask.depth(0.77), ParameterMask.loss(0.4), ParameterMask.layers(2)],
    ids=repr,
)
@pytest.mark.parametrize("backend", ["autograd", "cpu"])
def test_stacked_trajectories_with_every_mask(backend, mask):
    """The `loss` mask leaves out other entries for every trajectory."""
    if backend == "cpu":
        require_native()
    problem = {**make_problem(stacked=2), "augment": DSA().seeded(6), "mask": mask}
    weight = torch.tensor([0.7, -1.6], dtype=torch.float64)
    with record_backends() as used:
        loss, exact = gradients(problem, ALL, weight=weight, backend=backend)
    assert used == [backend]
    truth_loss, truth = gradients(problem, ALL, weight=weight, gradient="unroll")
    assert relative_error(loss, truth_loss) < 1e-12 and float((loss[0] - loss[1]).abs()) > 1e-3
    assert_same(exact, truth)


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "color", "scale_rotate"])
def test_augmentation_is_differentiated(strategy):
    problem = make_problem()
    problem["augment"] = DSA(strategy).seeded(3)
    _, exact = gradients(problem, ALL)
    _, truth = gradients(problem, ALL, gradient="unroll")
    assert_same(exact, truth)
    _, plain = gradients(problem, ("images",), augment=None)
    assert relative_error(exact["images"], plain["images"]) > 1e-3, "the augmentation had no effect"


def test_augment_may_draw_from_the_default_generator():
    problem = make_problem()

    def noisy(images: Tensor, step: int) -> Tensor:
        return images * (1 + 0.3 * torch.rand(len(images), 1, 1, 1, dtype=images.dtype)) + 0.1 * step

    torch.manual_seed(9)
    _, exact = gradients(problem, ALL, augment=noisy)
    after_exact = torch.rand(3)
    torch.manual_seed(9)
    _, truth = gradients(problem, ALL, augment=noisy, gradient="unroll")
    assert_same(exact, truth)
    assert torch.equal(after_exact, torch.rand(3)), "the reverse pass must not advance the caller's generator"


def test_augment_with_hidden_state_is_refused():
    private = torch.Generator().manual_seed(1)

    def hidden(images: Tensor, step: int) -> Tensor:
        flip = torch.rand(len(images), 1, 1, 1, generator=private) < 0.5
        return torch.where(flip, images.flip(3), images)

    with pytest.raises(InputError, match="pure function of"):
        gradients(make_problem(), ("images",), augment=hidden)


def test_augment_that_detaches_is_refused():
    with pytest.raises(InputError, match="differentiable"):
        gradients(make_problem(), ("images",), augment=lambda images, step: images.detach() * 2)


def test_dropout_draws_the_same_units_twice():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 81, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 4)).double()
    theta = FlatNetwork(net).initial()
    problem = {**make_problem(), "model": net, "theta_start": theta, "theta_target": theta + 0.1}
    torch.manual_seed(2)
    _, exact = gradients(problem, ("images", "labels", "lr"))
    torch.manual_seed(2)
    _, truth = gradients(problem, ("images", "labels", "lr"), gradient="unroll")
    assert_same(exact, truth)


def test_batch_norm_statistics_are_updated_once_per_step():
    results = []
    for gradient in ("exact", "unroll"):
        problem = make_problem("convnet_bn")
        gradients(problem, ("images",), gradient=gradient)
        results.append({name: value.clone() for name, value in problem["model"].named_buffers()})
    exact, truth = results
    assert int(exact["features.1.num_batches_tracked"]) == 4
    for name, value in truth.items():
        assert torch.allclose(exact[name].double(), value.double(), rtol=1e-12), name


def test_images_need_not_be_leaves():
    problem = make_problem()
    leaf = problem["images"].clone().requires_grad_()
    inputs = {**problem, "images": leaf.tanh() * 2}
    trajectory_matching_loss(inputs.pop("model"), **inputs).backward()
    other = problem["images"].clone().requires_grad_()
    inputs = {**problem, "images": other.tanh() * 2, "gradient": "unroll"}
    trajectory_matching_loss(inputs.pop("model"), **inputs).backward()
    assert leaf.grad is not None and other.grad is not None
    assert relative_error(leaf.grad, other.grad) < TOLERANCE


def test_central_differences():
    problem = make_problem()
    # Away from ReLU's kinks the loss is smooth; a sigmoid network has none.
    torch.manual_seed(3)
    net = ConvNet(channels=2, classes=4, width=5, depth=2, resolution=9, activation="sigmoid").double()
    theta = FlatNetwork(net).initial()
    problem |= {"model": net, "theta_start": theta, "theta_target": theta + 0.1 * torch.randn_like(theta)}
    _, exact = gradients(problem, ("images", "labels", "lr"))
    for name in ("images", "labels", "lr"):
        direction = torch.randn_like(problem[name])
        h = 1e-6
        values = []
        for sign in (1, -1):
            shifted = {**problem, name: problem[name] + sign * h * direction}
            values.append(float(trajectory_matching_loss(shifted.pop("model"), **shifted)))
        expected = (values[0] - values[1]) / (2 * h)
        assert float((exact[name] * direction).sum()) == pytest.approx(expected, rel=1e-5), name


def test_tesla_leaves_out_the_hessian_terms():
    """dL/dx_t = -(2 alpha / D) [d_x g_t]^T (theta_T - theta*), computed here from the formula."""
    problem = make_problem()
    _, approximate = gradients(problem, ("images", "labels", "lr"), gradient="tesla")
    network, lr = FlatNetwork(problem["model"]), problem["lr"]
    images, labels = problem["images"].requires_grad_(), problem["labels"].requires_grad_()
    theta, total = problem["theta_start"], 0.0
    first = problem["mask"].first_kept(network)
    steps = []
    for batch in problem["batches"]:
        leaf = theta.detach().requires_grad_()
        logits = network(leaf, images[batch])
        loss = -(labels[batch].softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
        (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
        steps.append(g)
        total = total + g
        theta = (theta - lr * g).detach()
    error = theta - problem["theta_target"]
    error[:first] = 0
    scale = (problem["theta_start"] - problem["theta_target"])[first:].square().sum()
    expected_x, expected_y = torch.autograd.grad(
        sum(-(2 * lr / scale) * torch.dot(g, error) for g in steps), (images, labels)
    )
    expected_lr = -(2 / scale) * torch.dot(torch.as_tensor(total).detach(), error)
    assert_same(approximate, {"images": expected_x, "labels": expected_y, "lr": expected_lr})
    _, exact = gradients(problem, ("images",))
    assert relative_error(approximate["images"], exact["images"]) > 1e-2, "the approximation should differ"


def test_plain_number_as_learning_rate_and_no_gradient_wanted():
    problem = make_problem()
    problem["lr"] = 0.37
    net = problem.pop("model")
    loss = trajectory_matching_loss(net, **problem)
    assert not loss.requires_grad
    truth = trajectory_matching_loss(net, **problem, gradient="unroll")
    assert float(loss) == pytest.approx(float(truth.detach()), rel=1e-12)


def test_the_learning_rate_may_have_its_own_dtype_and_shape():
    problem = make_problem()
    single = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in problem.items()}
    single["model"], _, _, _ = make_net("convnet")
    single["model"].float()
    single["lr"] = torch.tensor([0.37], dtype=torch.float64)
    for backend in ("autograd", "auto"):
        _, exact = gradients(single, ("images", "lr"), backend=backend)
        _, truth = gradients(problem, ("images", "lr"))
        assert exact["lr"].dtype == torch.float64 and list(exact["lr"].shape) == [1]
        assert relative_error(exact["lr"][0], truth["lr"]) < 1e-4
        assert exact["images"].dtype == torch.float32


def test_backward_twice_gives_the_same():
    problem = make_problem()
    net, images = problem.pop("model"), problem["images"].requires_grad_()
    loss = trajectory_matching_loss(net, **problem)
    (first,) = torch.autograd.grad(loss, images, retain_graph=True)
    (second,) = torch.autograd.grad(loss, images)
    assert torch.equal(first, second)


def test_double_backward_is_refused():
    problem = make_problem()
    net, images = problem.pop("model"), problem["images"].requires_grad_()
    # Already when it is asked for: a gradient without a graph would leave a penalty on it without effect.
    with pytest.raises(InputError, match="can be differentiated once.*gradient='unroll'"):
        torch.autograd.grad(trajectory_matching_loss(net, **problem), images, create_graph=True)


def test_inputs_are_not_written_to():
    problem = make_problem()
    before = {k: v.clone() for k, v in problem.items() if isinstance(v, Tensor)}
    weights = [p.detach().clone() for p in problem["model"].parameters()]
    gradients(problem, ALL)
    assert all(torch.equal(problem[name], value) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(problem["model"].parameters(), weights, strict=True))


def test_float32_agrees_per_step_with_float64():
    problem = make_problem()
    single = {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in problem.items()}
    single["model"], _, _, _ = make_net("convnet")
    single["model"].float()
    one = {"batches": problem["batches"][:1]}
    _, truth = gradients({**problem, **one}, ("images", "labels", "lr"))
    _, got = gradients({**single, **one}, ("images", "labels", "lr"))
    for name, expected in truth.items():
        assert got[name].dtype == torch.float32
        assert relative_error(got[name], expected) < 3e-6, name  # worst seen 5e-7


def test_backend_is_recorded_and_unknown_names_are_refused():
    problem = make_problem()
    with record_backends() as used:
        gradients(problem, ("images",), backend="autograd")
    assert used == ["autograd"]
    assert "autograd" in backends()
    with pytest.raises(BackendError, match="did you mean 'autograd'|Did you mean 'autograd'"):
        gradients(problem, ("images",), backend="autogard")
    with pytest.raises(BackendError, match="Did you mean 'exact'"):
        gradients(problem, ("images",), gradient="exakt")
    with pytest.raises(BackendError, match="precision 'bf16'"):
        gradients(problem, ("images",), backend="autograd", precision="bf16")


Change = Callable[[dict[str, Any]], dict[str, Any]]
BAD: list[tuple[str, Change, str]] = [
    ("theta too short", lambda p: {"theta_start": p["theta_start"][:-1]}, "parameters"),
    ("other dtype", lambda p: {"theta_start": p["theta_start"].float()}, "convert one"),
    ("unequal", lambda p: {"theta_target": p["theta_target"].repeat(2, 1)}, "must be equal"),
    ("integer images", lambda p: {"images": (p["images"] * 9).long()}, "theta_start is"),
    ("label count", lambda p: {"labels": p["labels"][:3]}, "3 labels for 7 images"),
    ("label shape", lambda p: {"labels": p["labels"][:, :, None]}, "soft labels"),
    ("int32 labels", lambda p: {"labels": torch.zeros(7, dtype=torch.int32)}, "pass int64"),
    ("lr NaN", lambda p: {"lr": float("nan")}, "must be a finite number"),
    ("lr infinite", lambda p: {"lr": torch.tensor(-torch.inf, dtype=torch.float64)}, "lr is -inf; .*a finite number"),
    ("lr vector", lambda p: {"lr": torch.ones(2, dtype=torch.float64)}, "one floating value"),
    ("no batches", lambda p: {"batches": []}, "batches is empty"),
    ("empty batch", lambda p: {"batches": [torch.tensor([], dtype=torch.int64)]}, r"batches\[0\]"),
    ("index too large", lambda p: {"batches": [torch.tensor([0]), torch.tensor([7])]}, r"batches\[1\] holds indices 7"),
    ("negative index", lambda p: {"batches": [torch.tensor([-1])]}, "holds indices -1"),
    ("float batch", lambda p: {"batches": [torch.tensor([0.0])]}, "int64 index tensor"),
    ("mask leaves nothing", lambda p: {"mask": ParameterMask.layers(3)}, "drop at most 2"),
]


EQUAL = "are equal in every entry that is matched.*`p.detach\\(\\).cpu\\(\\)`.*clone"


@pytest.mark.parametrize("gradient", ["exact", "unroll", "tesla"])
@pytest.mark.parametrize("mask", [ParameterMask.none(), ParameterMask.depth(0.4), ParameterMask.loss(0.4)], ids=repr)
@pytest.mark.parametrize("rate", [0.37, 0.0], ids=["inf", "nan"])
def test_a_start_that_is_the_target_is_named(gradient, mask, rate):
    """As replay buffers written on a CPU hold them; on a GPU nothing is looked at."""
    problem = {**make_problem(stacked=2), "mask": mask, "lr": torch.tensor(rate, dtype=torch.float64)}
    still = problem["theta_target"].clone()
    still[1] = problem["theta_start"][1]
    with pytest.raises(InputError, match=rf"theta_start\[1\] and theta_target\[1\] {EQUAL}"):
        gradients({**problem, "theta_target": still}, ("images",), gradient=gradient)
    one = {**problem, "theta_start": still[1], "theta_target": still[1]}
    with pytest.raises(InputError, match=f"theta_start and theta_target {EQUAL}"):
        gradients(one, ("images",), gradient=gradient)


@pytest.mark.parametrize("changed", [0, -1], ids=["first", "last"])
def test_only_entries_that_are_matched_count(changed):
    problem = make_problem()
    problem["theta_target"] = problem["theta_start"].clone()
    problem["theta_target"][changed] += 0.1
    if changed == -1:
        assert bool(gradients(problem, ("images",))[0].isfinite())
        return
    with pytest.raises(InputError, match=EQUAL):
        gradients(problem, ("images",))


def test_a_loss_that_is_infinite_for_another_reason_is_returned():
    problem = make_problem()
    problem["lr"] = torch.tensor(1e300, dtype=torch.float64)
    assert not bool(gradients(problem, ("lr",))[0].isfinite())


@pytest.mark.usefixtures("shapes_unchecked")
@pytest.mark.parametrize(("name", "change", "message"), BAD, ids=[name for name, _, _ in BAD])
def test_bad_input_is_named(name, change, message):
    problem = make_problem()
    problem |= change(problem)
    with pytest.raises(InputError, match=message):
        trajectory_matching_loss(problem.pop("model"), **problem)


def test_layers_of_a_wrapper_cannot_be_counted():
    problem = make_problem("wrapper")
    with pytest.raises(InputError, match="flat vector"):
        trajectory_matching_loss(problem.pop("model"), **{**problem, "mask": ParameterMask.layers(1)})


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_mask_ratio_outside_its_range(ratio):
    for make in (ParameterMask.depth, ParameterMask.loss):
        with pytest.raises(InputError, match=r"\[0, 1\)"):
            make(ratio)


def test_unknown_mask_and_fractional_layers():
    with pytest.raises(InputError, match="Did you mean 'depth'"):
        ParameterMask("dpeth", 0.5)
    with pytest.raises(InputError, match="whole number"):
        ParameterMask("layers", 1.5)


def test_masks_drop_what_they_say():
    network = FlatNetwork(ConvNet(channels=2, classes=4, width=5, depth=2, resolution=9))
    first_block = 5 * 2 * 9 + 5 + 5 + 5
    assert network.layer_starts() == (0, first_block, first_block + 5 * 5 * 9 + 15)
    assert ParameterMask.layers(1).first_kept(network) == first_block
    assert ParameterMask.depth(0.999).first_kept(network) == int(0.999 * network.parameter_count)
    assert ParameterMask.loss(0.25).dropped_entries(10) == 2
    assert ParameterMask.loss(0.25).first_kept(network) == 0


def test_loss_mask_drops_exactly_the_smallest_even_with_ties():
    end = torch.tensor([1.0, 1.0, 1.0, 3.0, 0.5])
    start = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0])
    target = torch.zeros(5)
    value = normalized_distance(end, start, target, dropped=3)
    # 0.5 goes first, then the first two of the tied ones.
    assert float(value) == pytest.approx((1 + 9) / (900 + 1600))


def test_the_largest_are_those_behind_a_stable_sort():
    draws = torch.Generator().manual_seed(0)
    few = torch.randint(5, (3, 40), generator=draws).float()
    few[few == 4] = float("inf")
    with_nan = few.masked_fill(torch.rand((3, 40), generator=draws) < 0.3, float("nan"))
    for values in (few, with_nan, torch.rand((3, 40), generator=draws)):
        ranks = values.argsort(dim=-1, stable=True).argsort()
        for dropped in range(41):
            assert torch.equal(keep_largest(values, dropped), ranks >= dropped)


def test_a_module_without_parameters_is_refused():
    with pytest.raises(InputError, match="no parameters"):
        FlatNetwork(nn.ReLU())


def test_layer_norm_of_a_foreign_module_belongs_to_the_layer_before_it():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm([2, 4, 4]), nn.Flatten(), nn.Linear(32, 3))
    assert FlatNetwork(net).layer_starts() == (0, 20 + 64)


def test_loading_parameters_copies_them():
    network = FlatNetwork(ConvNet(channels=2, classes=4, width=5, depth=2, resolution=9))
    theta = torch.randn(network.parameter_count)
    network.load(theta)
    assert torch.equal(network.initial(), theta)
    with torch.no_grad():
        next(network.module.parameters()).add_(1)
    assert not torch.equal(network.initial(), theta), "the vector must not change with the module"
