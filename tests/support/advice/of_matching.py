"""The matching loss, its masks, engines, and matching without experts."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pad_fast import DSA, ConvNet, ParameterMask, trajectory_matching_loss
from pad_fast.matching.distributions import blocks_kept
from pad_fast.matching.gradients import channels_of
from pad_fast.models.flat import FlatNetwork
from pad_fast.scoring import native

from ..exactness import KINDS, Once, body, flat
from .entry import Entry, changed, in_turn, pixels
from .of_models import Wrapped

NET = ConvNet(channels=1, classes=3, width=4, depth=1, resolution=8)
THETA = flat(NET)
GIVEN: dict[str, Any] = {
    "theta_start": THETA,
    "theta_target": THETA + 0.1,
    "images": pixels(6, 1, 8, 8),
    "labels": torch.zeros(6, 3),
    "lr": torch.tensor(0.05),
    "batches": [torch.arange(6)] * 2,
}


def loss(model: nn.Module = NET, **changes: Any) -> Tensor:
    """The loss, pulled back to images and soft labels."""
    given = changed(GIVEN, **changes)
    for name in ("images", "labels"):
        if given[name].is_floating_point() and not given[name].is_inference():
            given[name] = given[name].clone().requires_grad_()
    found = trajectory_matching_loss(model, **given)
    found.sum().backward()
    return found


class Returns(nn.Module):
    """A linear network whose result is wrapped in something."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head, self.wrap = nn.Linear(64, 3), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.head(x.flatten(1)))


def of_others(network: nn.Module, labels: Tensor) -> Tensor:
    return loss(network, theta_start=flat(network), theta_target=flat(network) + 1, labels=labels)


def returns(wrap: Callable[[Tensor], Any]) -> Tensor:
    network = Returns(wrap)
    return loss(network, theta_start=flat(network), theta_target=flat(network) + 1)


def strength(*, named: bool = False, **how: Any) -> Tensor:
    """An augmentation with a tensor of its own that is used in the second step only."""
    scale = torch.tensor(1.1, requires_grad=True)
    if named:
        how["parameters"] = [scale]
    return loss(augment=lambda images, step: images * scale if step else images, **how)


def detached(detach: bool) -> Tensor:
    return loss(augment=lambda images, step: images.detach() * 2 if detach else images * 2)


def random_images(own: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0) if own else None
    return loss(augment=lambda images, step: images + torch.randn(images.shape, generator=generator))


def counting(**how: Any) -> Tensor:
    network = next(kind for kind in KINDS if "Python attribute" in kind.says).make()
    return loss(network, theta_start=flat(network), theta_target=flat(network) + 1, **how)


def second_derivative(**how: Any) -> None:
    images = GIVEN["images"].clone().requires_grad_()
    found = trajectory_matching_loss(
        NET, **changed(GIVEN, images=images, **{k: v for k, v in how.items() if k == "gradient"})
    )
    torch.autograd.grad(found, images, create_graph=how.get("create_graph", True))


def without_grad(**changes: Any) -> None:
    context = changes.pop("context", torch.no_grad())
    with context:
        trajectory_matching_loss(NET, **changed(GIVEN, **changes))


def inference() -> Tensor:
    with torch.inference_mode():
        return GIVEN["images"].clone()


def transformed(vmap: bool) -> Any:
    """Two trajectories: by vmap, or as the library does it."""
    stacked = torch.stack([THETA, THETA + 0.2])
    if vmap:
        return torch.func.vmap(lambda start: trajectory_matching_loss(NET, **changed(GIVEN, theta_start=start)))(
            stacked
        )
    return loss(theta_start=stacked, theta_target=stacked + 0.1)


def kept_while_training(*, copied: bool) -> Tensor:
    """Two snapshots as a program on a CPU keeps them."""
    weights, snapshots = torch.nn.Parameter(THETA.clone()), []
    for _ in range(2):
        snapshots.append(weights.detach().cpu().clone() if copied else weights.detach().cpu())
        weights.data.add_(0.1)
    return loss(theta_start=snapshots[0], theta_target=snapshots[1])


def scores(**changes: Any) -> None:
    given = {
        "mean": torch.zeros(4, dtype=torch.float64),
        "deviations": torch.zeros(4, dtype=torch.float64),
        "seen": 0,
        "logits": torch.rand(4, 3),
        "labels": torch.tensor([0, 1, 2, 0]),
    }
    native.accumulate(**changed(given, **changes))


SAME = torch.zeros(4, dtype=torch.float64)

MATCHING = (
    Entry(
        "images as a list",
        lambda _: trajectory_matching_loss(NET, **changed(GIVEN, images=[1.0])),
        r"pass a floating tensor \[N, C, H, W\]",
        lambda _: loss(),
    ),
    Entry(
        "snapshots of another network",
        lambda _: loss(theta_start=THETA[:5], theta_target=THETA[:5]),
        r"pass \[\d+\], or \[K, \d+\]",
        lambda _: in_turn(loss, lambda: loss(theta_start=THETA.expand(2, -1), theta_target=THETA.expand(2, -1) + 1)),
    ),
    Entry(
        "snapshots in float64",
        lambda _: loss(theta_start=THETA.double()),
        r"convert one with .to\(...\)",
        lambda _: loss(theta_start=THETA.double().to(torch.float32)),
    ),
    Entry(
        "one snapshot, two targets",
        lambda _: loss(theta_target=THETA.expand(2, -1)),
        "they must be equal",
        lambda _: loss(),
    ),
    Entry(
        "images of one axis", lambda _: loss(images=torch.zeros(6)), r"pass floating \[N, C, H, W\]", lambda _: loss()
    ),
    Entry("too few labels", lambda _: loss(labels=torch.zeros(5, 3)), "5 labels for 6 images", lambda _: loss()),
    Entry(
        "soft labels in float64",
        lambda _: loss(labels=torch.zeros(6, 3).double()),
        r"pass \[N, classes\] of torch.float32",
        lambda _: loss(labels=torch.zeros(6, 3)),
    ),
    Entry(
        "soft labels of an unknown kind",
        lambda _: loss(labels_are="probs"),
        "use one of logits, probabilities",
        lambda _: [loss(labels_are=each) for each in ("logits", "probabilities")],
    ),
    Entry(
        "an augmentation with numbers of its own",
        lambda _: DSA.from_reference("color_flip", SimpleNamespace(prob_flip=0.25)),
        "prob_flip .* is 0.25, and here it is 0.5; pass a function that calls your own augmentation",
        lambda _: loss(augment=lambda images, step: images.flip(3) if float(torch.rand(())) < 0.25 else images),
    ),
    Entry(
        "hard labels as rows",
        lambda _: loss(labels=torch.zeros(6, 3).long()),
        r"pass int64 \[N\]",
        lambda _: loss(labels=torch.zeros(6).long()),
    ),
    Entry(
        "labels that are no class",
        lambda _: loss(labels=torch.full((6,), 3)),
        "classes of the network are 0 to 2",
        lambda _: loss(labels=torch.full((6,), 2)),
    ),
    Entry("two rates", lambda _: loss(lr=torch.ones(2)), "pass one floating value", lambda _: loss(lr=torch.ones(()))),
    Entry(
        "a snapshot that is the live weights",
        lambda _: kept_while_training(copied=False),
        "write them with `.clone\\(\\)` behind it, or pass those of two different epochs",
        lambda _: in_turn(lambda: kept_while_training(copied=True), loss),
    ),
    Entry(
        "a rate that is none",
        lambda _: loss(lr=torch.tensor(torch.nan)),
        "must be a finite number",
        lambda _: in_turn(*(lambda rate=rate: loss(lr=torch.tensor(rate)) for rate in (0.1, 0.0, -0.1))),
    ),
    Entry(
        "no batches",
        lambda _: loss(batches=[]),
        "pass one index tensor per student step",
        lambda _: loss(batches=[torch.arange(6)]),
    ),
    Entry(
        "batches of slices",
        lambda _: loss(batches=[torch.ones(6)]),
        r"pass a non-empty int64 index tensor \[B\]",
        lambda _: loss(batches=[torch.arange(6)]),
    ),
    Entry(
        "an index too large",
        lambda _: loss(batches=[torch.tensor([6])]),
        "there are 6 images",
        lambda _: loss(batches=[torch.tensor([5])]),
    ),
    Entry(
        "images made for inference",
        lambda _: loss(images=inference()),
        r"pass images.clone\(\) made outside",
        lambda _: loss(images=inference().clone()),
    ),
    Entry(
        "a loss without graph",
        lambda _: without_grad(images=pixels(6, 1, 8, 8).requires_grad_()),
        r"call it under torch.enable_grad\(\), or pass detached tensors",
        lambda _: in_turn(
            lambda: without_grad(images=pixels(6, 1, 8, 8).requires_grad_(), context=torch.enable_grad()),
            lambda: without_grad(images=pixels(6, 1, 8, 8)),
        ),
    ),
    Entry(
        "vmap",
        lambda _: transformed(True),
        r"for several trajectories with stacked \[K, P\] snapshots",
        lambda _: transformed(False),
    ),
    Entry(
        "a second derivative",
        lambda _: second_derivative(),
        "leave it out, or use gradient='unroll'",
        lambda _: in_turn(lambda: second_derivative(create_graph=False), lambda: second_derivative(gradient="unroll")),
    ),
    Entry(
        "a pair of logits",
        lambda _: returns(lambda x: (x, x)),
        "whose forward returns the logits",
        lambda _: returns(lambda x: x),
    ),
    Entry(
        "logits of three axes",
        lambda _: returns(lambda x: x[:, None]),
        r"logits are \[B, classes\]",
        lambda _: returns(lambda x: x),
    ),
    Entry(
        "too few classes",
        lambda _: returns(lambda x: x[:, :2]),
        "soft labels have 3 classes",
        lambda _: returns(lambda x: x),
    ),
    Entry(
        "a label of a network that is none of ours",
        lambda _: of_others(Returns(lambda x: x), torch.full((6,), 3)),
        "classes count from 0",
        lambda _: of_others(Returns(lambda x: x), torch.full((6,), 2)),
    ),
    Entry(
        "an operation that is differentiable once",
        lambda _: of_others(Returns(Once.apply), torch.full((6,), 2)),
        "replace it by operations that can",
        lambda _: of_others(Returns(lambda x: 2 * x), torch.full((6,), 2)),
    ),
    Entry(
        "labels on another device",
        lambda _: loss(labels=torch.zeros(6, 3, device="meta")),
        r"move one with .to\(...\)",
        lambda _: loss(labels=torch.zeros(6, 3)),
    ),
    Entry(
        "a tensor that gets no gradient",
        lambda _: strength(),
        "Name it in parameters= if augment uses it, .*gradient='unroll' also reaches it",
        lambda _: in_turn(
            lambda: strength(named=True),
            lambda: loss(augment=lambda x, step: x * 1.1),
            lambda: strength(gradient="unroll"),
        ),
    ),
    Entry(
        "an augmentation that detaches", lambda _: detached(True), "must be differentiable", lambda _: detached(False)
    ),
    Entry(
        "an augmentation with a generator of its own",
        lambda _: random_images(True),
        r"a pure function of \(images, step\), or draw only from torch's default",
        lambda _: in_turn(lambda: random_images(False), lambda: loss(augment=lambda x, step: x * (step + 1))),
    ),
    Entry(
        "a network that counts", lambda _: counting(), "use gradient='unroll'", lambda _: counting(gradient="unroll")
    ),
    Entry(
        "an unknown gradient", lambda _: loss(gradient="exat"), "Did you mean 'exact'", lambda _: loss(gradient="exact")
    ),
    Entry(
        "an unknown backend",
        lambda _: loss(backend="autogrd"),
        "Did you mean 'autograd'",
        lambda _: loss(backend="autograd"),
    ),
    Entry(
        "an engine for the whole loop",
        lambda _: loss(gradient="unroll", backend="cpu"),
        "use backend='autograd', or gradient='exact'",
        lambda _: in_turn(
            lambda: loss(gradient="unroll", backend="autograd"), lambda: loss(gradient="exact", backend="auto")
        ),
    ),
    Entry(
        "an augmentation that resizes",
        lambda _: loss(augment=lambda x, step: x[..., :6, :6]),
        "resize them",
        lambda _: loss(augment=lambda x, step: nn.functional.interpolate(x[..., :6, :6], size=8)),
    ),
    Entry(
        "an augmentation to float64",
        lambda _: loss(augment=lambda x, step: x.double()),
        "augment must keep that",
        lambda _: loss(augment=lambda x, step: x.double().float()),
    ),
    Entry(
        "an augmentation that repeats",
        lambda _: loss(augment=lambda x, step: x.repeat(2, 1, 1, 1)),
        "augment must keep the number of images: repeat an index",
        lambda _: in_turn(
            lambda: loss(augment=lambda x, step: x.repeat(2, 1, 1, 1)[: len(x)]),
            lambda: loss(augment=lambda x, step: x + torch.rand(len(x), 1, 1, 1), batches=[torch.arange(6).repeat(2)]),
        ),
    ),
    Entry(
        "an unknown mask",
        lambda _: ParameterMask("deph", 0.5),
        "Did you mean 'depth'",
        lambda _: ParameterMask("depth", 0.5),
    ),
    Entry(
        "half a layer", lambda _: ParameterMask.layers(1.5), "a whole number >= 0", lambda _: ParameterMask.layers(1)
    ),
    Entry(
        "all parameters out",
        lambda _: ParameterMask.depth(1.0),
        r"must lie in \[0, 1\)",
        lambda _: ParameterMask.depth(0.99),
    ),
    Entry(
        "all layers out",
        lambda _: loss(mask=ParameterMask.layers(2)),
        "so drop at most 1",
        lambda _: loss(mask=ParameterMask.layers(1)),
    ),
    Entry(
        "the loss mask in distributions",
        lambda _: blocks_kept(FlatNetwork(NET), ParameterMask.loss(0.5)),
        "use depth, layers or none",
        lambda _: in_turn(
            lambda: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.depth(0.5)),
            lambda: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.layers(1)),
            lambda: blocks_kept(FlatNetwork(NET), ParameterMask.none()),
        ),
    ),
    Entry(
        "blocks of another network",
        lambda _: blocks_kept(FlatNetwork(body()), ParameterMask.depth(0.5)),
        "use mask none",
        lambda _: blocks_kept(FlatNetwork(body()), ParameterMask.none()),
    ),
    Entry(
        "all blocks out",
        lambda _: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.layers(3)),
        "leave out at most 2 of them",
        lambda _: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.layers(2)),
    ),
    Entry(
        "all blocks out by ratio",
        lambda _: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.depth(0.9)),
        "leave out at most a ratio of 0.667",
        lambda _: blocks_kept(FlatNetwork(ConvNet()), ParameterMask.depth(0.66)),
    ),
    Entry(
        "the loss mask in gradients",
        lambda _: channels_of(FlatNetwork(NET), ParameterMask.loss(0.5)),
        "use depth, layers or none",
        lambda _: in_turn(
            lambda: channels_of(FlatNetwork(NET), ParameterMask.depth(0.5)),
            lambda: channels_of(FlatNetwork(NET), ParameterMask.layers(1)),
            lambda: channels_of(FlatNetwork(NET), ParameterMask.none()),
        ),
    ),
    Entry(
        "gradients behind a flat wrapper",
        lambda _: channels_of(FlatNetwork(Wrapped()), ParameterMask.none()),
        "pass the network without its flat wrapper",
        lambda _: channels_of(FlatNetwork(NET), ParameterMask.none()),
    ),
    Entry(
        "no weights left",
        lambda _: channels_of(FlatNetwork(NET), ParameterMask.depth(0.999)),
        "lower it",
        lambda _: channels_of(FlatNetwork(NET), ParameterMask.depth(0.5)),
    ),
    Entry("one memory for two", lambda _: scores(mean=SAME, deviations=SAME), "pass two tensors", lambda _: scores()),
    Entry("networks before", lambda _: scores(seen=-1), "from 0", lambda _: scores(seen=0)),
    Entry(
        "scores of other rows",
        lambda _: scores(mean=torch.zeros(3, dtype=torch.float64)),
        "pass the same rows of it",
        lambda _: scores(),
    ),
    Entry(
        "labels of other rows", lambda _: scores(labels=torch.tensor([0, 1])), "pass one per sample", lambda _: scores()
    ),
    Entry(
        "labels beyond the classes",
        lambda _: scores(labels=torch.tensor([0, 1, 2, 3])),
        r"they must lie in \[0, 3\)",
        lambda _: scores(),
    ),
    Entry("scores in float32", lambda _: scores(mean=torch.zeros(4)), "convert it to", lambda _: scores()),
    Entry("logits of one axis", lambda _: scores(logits=torch.zeros(4)), "2 dimensions are needed", lambda _: scores()),
    Entry(
        "transposed logits",
        lambda _: scores(logits=torch.rand(3, 4).T),
        r"pass logits.contiguous\(\)",
        lambda _: scores(logits=torch.rand(3, 4).T.contiguous()),
    ),
    Entry(
        "features of other rows",
        lambda _: scores(features=torch.rand(3, 5)),
        "pass one row per sample",
        lambda _: scores(features=torch.rand(4, 5)),
    ),
    Entry("no threads", lambda _: scores(threads=0), "at least 1", lambda _: scores(threads=1)),
)
