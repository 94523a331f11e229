"""The public entry point: the inner loop of MTT, FTD, DATM, PAD and TESLA scripts in one call."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.augment import SeededDSA
from ..data.labels import LABELS_ARE, are_probabilities
from ..engines import Augment, Task, require_gradient, select
from ..engines.unroll import unroll
from ..errors import InputError, require_one_of
from ..models.convnet import ConvNet
from ..models.flat import FlatNetwork, rearrange
from ..runtime.device import cache_bytes
from ..runtime.distributed import ALONE, Group
from ..runtime.shapes import Float, Int
from .distance import normalized_distance
from .exact import Unroll, constant_memory_loss
from .masks import ParameterMask
from .reference_batches import ReferenceBatches
from .replay import FirstImages
from .split_batches import SplitBatches, WholeBatches, require_divisible


def trajectory_matching_loss(
    model: nn.Module | FlatNetwork,
    theta_start: Float[Tensor, "*K P"],
    theta_target: Float[Tensor, "*K P"],
    images: Float[Tensor, "N ..."],
    labels: Float[Tensor, "N classes"] | Int[Tensor, " N"],
    lr: Float[Tensor, ""] | Float[Tensor, " 1"] | float,
    *,
    batches: Sequence[Int[Tensor, " _"]] | ReferenceBatches,
    mask: ParameterMask | None = None,
    augment: Augment | None = None,
    parameters: Sequence[Tensor] = (),
    labels_are: str | None = None,
    gradient: str = "exact",
    backend: str = "auto",
    precision: str = "auto",
    cache: int | str = 0,
    group: Group = ALONE,
) -> Float[Tensor, "*K"]:
    r"""How far a student trained on synthetic images lands from an expert, relative to where it started.

    The student starts at `theta_start` and takes `len(batches)` SGD steps
    `theta <- theta - lr * grad CE(f(augment(images[b])), labels[b])`. The result is
    `sum_m (theta_T - theta*)^2 / sum_m (theta_s - theta*)^2` over the entries `m` that the mask keeps
    (MTT, arXiv 2203.11932; mask: PAD's FIEm). It back-propagates into `images`, `labels` and `lr`, and into
    `theta_start` and `theta_target` where those require a gradient.

    Args:
        model: a ConvNet of ours, any `nn.Module` (flat parameters in `parameters()` order), or a flat-parameter
            wrapper whose `forward` takes `flat_param=`. Training mode is respected; batch-norm statistics are
            updated once per step. Somebody else's ConvNet with instance norm, ReLU and average pooling, also inside
            such a wrapper, is recognised by its modules and compared forward passes, once for all objects that are
            made alike, and then served by the native engines.
        theta_start: expert snapshot s, `[P]`, or `[K, P]` for K trajectories at once.
        theta_target: expert snapshot s + M, same shape.
        images: synthetic images `[N, C, H, W]`, same dtype and device as the parameters.
        labels: soft labels `[N, classes]` (floating), or classes `[N]` (int64: hard).
        lr: the student's learning rate, a scalar tensor or a number. A learned one may reach zero, where the student
            stays at `theta_start`, and go below, where it climbs; neither is refused.
        batches: one int64 index tensor `[B_t]` per step, indices into `images`. Those of
            :func:`pad_fast.reference_batches` are drawn on the way, in turn with what `augment` draws.
        mask: which parameters are matched; None matches all of them.
        augment: differentiable `(images [B, C, H, W], step) -> images`. It is evaluated twice per step and must give
            the same result both times: torch's default generators are rewound for it, others are not.
            A first call for step 0 looks at what it returns, whose height and width may differ from those of `images`
            (pieces of a canvas, say) and whose number may not: an index repeated in its batch is another sample.
        parameters: tensors that `augment` uses besides its arguments and that are to get a gradient (a decoder's
            weights, a learned strength). Those that step 0 uses are found without being named.
        labels_are: what soft labels hold: "logits", which are softmaxed here, or "probabilities", which count as they
            are, whatever they add up to, as in torch's `cross_entropy`. None takes them for logits, with a warning
            where they can hardly be that.
        gradient: "exact" (constant memory), "unroll" (autograd through the whole loop: the oracle, memory grows with
            T), or "tesla" (TESLA's approximation, which leaves out all Hessian terms; for comparison).
        backend: "auto", or an engine by name, see `pad_fast.engines.backends()`.
        precision: "auto", or an arithmetic the engine knows.
        cache: bytes of activations that may be kept between the forward and the reverse pass instead of being computed
            again; "auto" takes half of the free memory. The default keeps none, so memory does not grow with T. Only
            the native engines make use of it.
        group: divide every batch over the ranks of this group (`pad_fast.distributed.join()`). All of them pass the
            same arguments, whole batches included, and get the same loss and the same gradients as one process would,
            up to the order of sums. Augmentation must be a seeded DSA then.

    Returns:
        A scalar, or `[K]` for stacked parameters. "exact" and "tesla" can be differentiated once.

    Raises:
        InputError: shapes, dtypes, devices, indices or labels that do not fit together, a mask that leaves nothing, or
            a tensor that requires a gradient under `torch.no_grad`, or a network whose batches cannot be divided over a
            group; on a CPU, start and target that are the same snapshot.
        BackendError: the backend asked for by name cannot serve this.
        RankLost: another rank of the group has ended.

    Example:
        >>> import torch, pad_fast
        >>> _ = torch.manual_seed(0)
        >>> net = pad_fast.ConvNet(channels=1, width=4, depth=1, resolution=8)
        >>> start = torch.cat([p.detach().flatten() for p in net.parameters()])
        >>> images = torch.randn(10, 1, 8, 8, requires_grad=True)
        >>> labels, lr = torch.randn(10, 10, requires_grad=True), torch.tensor(0.02, requires_grad=True)
        >>> loss = pad_fast.trajectory_matching_loss(
        ...     net, start, start + 0.01, images, labels, lr, batches=[torch.arange(10)] * 3,
        ...     mask=pad_fast.ParameterMask.depth(0.5))
        >>> loss.backward()
        >>> images.grad.shape
        torch.Size([10, 1, 8, 8])
    """
    if not isinstance(images, Tensor) or images.dim() == 0:
        raise InputError(f"images are {type(images).__name__}; pass a floating tensor [N, C, H, W]")
    draw = None
    if isinstance(batches, ReferenceBatches) and not (augment is None or isinstance(augment, SeededDSA)):
        draw, sizes = batches.__getitem__, batches.sizes
        indices = torch.zeros(sum(sizes), dtype=torch.int64, device=images.device)
    else:
        sizes, indices = _indices(batches, images)
    first = None
    if augment is not None and not isinstance(augment, SeededDSA):
        first = FirstImages(augment, images.detach(), indices[: sizes[0]])
    # A ConvNet of ours needs no recognition, which would have to look at what `augment` returns.
    seen = images.shape[1:] if first is None or isinstance(model, ConvNet) else first.shape
    network = model if isinstance(model, FlatNetwork) else FlatNetwork(model, image_shape=seen)
    mask = ParameterMask.none() if mask is None else mask
    require_gradient(gradient)
    lr = torch.as_tensor(lr, dtype=None if isinstance(lr, Tensor) else images.dtype, device=images.device)
    _check(network, theta_start, theta_target, images, labels, lr)
    given = {"images": images, "labels": labels, "lr": lr, "theta_start": theta_start, "theta_target": theta_target}
    _require_recording(**given, **{f"parameters[{k}]": tensor for k, tensor in enumerate(parameters)})
    labels_are = _kind_of(labels, labels_are)
    first_kept = mask.first_kept(network)
    dropped = mask.dropped_entries(network.parameter_count)

    if isinstance(augment, SeededDSA) and not augment.augmentation.operations:
        augment = None
    split: WholeBatches | SplitBatches = WholeBatches()
    if group.size > 1:
        require_divisible(network, gradient)
        split = SplitBatches.of(group, sizes)
        indices, augment, sizes = split.indices(indices, sizes), split.augment(augment, sizes), split.sizes
    stacked = theta_start.dim() == 2
    starts = theta_start if stacked else theta_start[None]
    targets = theta_target if stacked else theta_target[None]
    # Masks of leading entries mean those of the network's own order.
    other = None if backend == "autograd" or gradient == "unroll" or first_kept else network.rearranged()
    if other is not None:
        network, pieces = other
        starts, targets = rearrange(starts, pieces), rearrange(targets, pieces)
    kept = cache_bytes(cache, images.device)
    task = Task(network, images.device, images.dtype, gradient, precision, kept, labels_are)
    engine = select(backend, task)
    if gradient == "unroll":
        if draw is None:
            batches = indices.split(sizes)
        ends = [
            unroll(
                network, start, images, labels, lr.reshape(()), batches=batches, augment=augment, labels_are=labels_are
            )
            for start in starts
        ]
        losses = normalized_distance(torch.stack(ends), starts, targets, first_kept=first_kept, dropped=dropped)
    else:
        _require_classes(network, labels)
        found = first.captured() if first is not None and torch.is_grad_enabled() else ()
        # By identity: tensors compare elementwise.
        every = {id(tensor): tensor for tensor in (*parameters, *found)}
        learned = tuple(tensor for tensor in every.values() if tensor.requires_grad)
        run = Unroll(engine, task, sizes, augment, gradient == "exact", first_kept, dropped, split, learned, draw)
        losses = constant_memory_loss(run, starts, targets, images, labels, lr.reshape(()), indices)
    if engine.distance is None:  # kernels compute it on a device, where a look waits for them
        _require_moved(losses, theta_start, theta_target, first_kept)
    return losses if stacked else losses[0]


def _require_moved(losses: Tensor, theta_start: Tensor, theta_target: Tensor, first_kept: int) -> None:
    """Name what makes a loss infinite or NaN whatever the rates: a start and a target that are the same snapshot.

    Looked for where a loss is known not to be finite. On a GPU it is not: reading one would wait for it.
    """
    if losses.device.type != "cpu" or bool(losses.detach().isfinite().all()):
        return
    same = (theta_start.detach() == theta_target.detach())[..., first_kept:].all(-1).reshape(-1)
    if bool(same.any()):
        row = f"[{int(same.nonzero()[0])}]" if theta_start.dim() == 2 else ""
        raise InputError(
            f"theta_start{row} and theta_target{row} are equal in every entry that is matched, so there is no distance "
            "to go. Snapshots that a program on a CPU kept as `p.detach().cpu()` are all the same memory, which "
            "training went on changing; write them with `.clone()` behind it, or pass those of two different epochs"
        )


def _check(
    network: FlatNetwork,
    theta_start: Tensor,
    theta_target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
) -> None:
    """Reject what cannot be meant before any work starts."""
    count = network.parameter_count
    for name, theta in (("theta_start", theta_start), ("theta_target", theta_target)):
        if theta.dim() not in (1, 2) or theta.shape[-1] != count:
            raise InputError(
                f"{name} has shape {list(theta.shape)}, but {type(network.module).__name__} has {count:,} parameters: "
                f"pass [{count}], or [K, {count}] for K trajectories"
            )
        if theta.dtype != images.dtype or theta.device != images.device:
            raise InputError(
                f"{name} is {theta.dtype} on {theta.device}, images are {images.dtype} on {images.device}; "
                "convert one with .to(...)"
            )
    if theta_start.shape != theta_target.shape:
        raise InputError(
            f"theta_start has shape {list(theta_start.shape)} and theta_target {list(theta_target.shape)}; "
            "they must be equal"
        )
    if not images.is_floating_point() or images.dim() < 2:
        raise InputError(f"images are {images.dtype} {list(images.shape)}; pass floating [N, C, H, W]")
    if labels.shape[:1] != images.shape[:1]:
        raise InputError(f"{labels.shape[0] if labels.dim() else 0} labels for {images.shape[0]} images")
    if labels.is_floating_point():
        if labels.dim() != 2 or labels.dtype != images.dtype:
            raise InputError(
                f"soft labels are {labels.dtype} {list(labels.shape)}; pass [N, classes] of {images.dtype}"
            )
    elif labels.dtype != torch.int64 or labels.dim() != 1:
        raise InputError(f"hard labels are {labels.dtype} {list(labels.shape)}; pass int64 [N]")
    if labels.device != images.device:
        raise InputError(f"labels are on {labels.device}, images on {images.device}; move one with .to(...)")
    if lr.numel() != 1 or not lr.is_floating_point():
        raise InputError(f"lr has shape {list(lr.shape)} and dtype {lr.dtype}; pass one floating value")
    # Reading a value on a GPU would wait for it, so there only the caller can check.
    if lr.device.type == "cpu" and not math.isfinite(float(lr.detach())):
        raise InputError(f"lr is {float(lr.detach()):g}; the student's learning rate must be a finite number")


def _require_classes(network: FlatNetwork, labels: Tensor) -> None:
    """Native engines read memory by class; torch would say so itself."""
    # Reading a value on a GPU would wait for it, so there only the caller can check.
    if labels.is_floating_point() or labels.device.type != "cpu" or not len(labels):
        return
    low, high = (int(end) for end in labels.aminmax())
    classes = None if isinstance(network.recognised, str) else network.recognised.config.classes
    if low < 0 or (classes is not None and high >= classes):
        raise InputError(
            f"hard labels run from {low} to {high}; classes of the network are 0 to "
            f"{'...' if classes is None else classes - 1}"
        )


def _kind_of(labels: Tensor, labels_are: str | None) -> str:
    """One-hot rows and the like are hardly meant as logits: a softmax flattens them, to 0.23 of ten classes."""
    if labels_are is not None:
        require_one_of("labels_are", labels_are, LABELS_ARE)
        return labels_are
    if labels.is_floating_point() and labels.device.type == "cpu" and are_probabilities(labels):
        warnings.warn(
            "every row of `labels` is a probability distribution, but they are taken as logits and softmaxed; pass "
            "labels_are='probabilities' to have them as they are, or 'logits' if that is meant",
            stacklevel=3,
        )
    return "logits"


def _require_recording(**tensors: Tensor) -> None:
    """A result that cannot be pulled back is better refused here than at a `backward()` far away."""
    if torch._C._are_functorch_transforms_active():
        raise InputError(
            "this is called inside a torch.func transform (vmap, grad, jvp), which cannot see through the reverse "
            "pass; call it outside, for several trajectories with stacked [K, P] snapshots"
        )
    for name, tensor in tensors.items():
        if tensor.is_inference():
            raise InputError(
                f"{name} was made under torch.inference_mode, so nothing can be differentiated in it; pass "
                f"{name}.clone() made outside"
            )
    if torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise InputError(
                f"{name} requires a gradient, but this is called under torch.no_grad (or inference_mode), so the loss "
                "could not be back-propagated: call it under torch.enable_grad(), or pass detached tensors to measure "
                "the loss alone"
            )


def _indices(batches: Sequence[Tensor] | ReferenceBatches, images: Tensor) -> tuple[tuple[int, ...], Tensor]:
    """Images per step, and all batches behind each other on the images' device: one copy instead of T."""
    if len(batches) == 0:
        raise InputError("batches is empty; pass one index tensor per student step")
    tensors = [torch.as_tensor(batch) for batch in batches]
    for step, batch in enumerate(tensors):
        if batch.dim() != 1 or batch.numel() == 0 or batch.is_floating_point() or batch.dtype == torch.bool:
            raise InputError(
                f"batches[{step}] is {batch.dtype} {list(batch.shape)}; pass a non-empty int64 index tensor [B]"
            )
    on_cpu = all(batch.device.type == "cpu" for batch in tensors)
    joined = torch.cat([batch.to("cpu" if on_cpu else images.device, torch.int64) for batch in tensors])
    # Reading a value on a GPU would wait for it, so there only the caller can check.
    if on_cpu and not 0 <= int(joined.min()) <= int(joined.max()) < len(images):
        for step, batch in enumerate(tensors):
            low, high = int(batch.min()), int(batch.max())
            if not 0 <= low <= high < len(images):
                raise InputError(f"batches[{step}] holds indices {low}..{high}, but there are {len(images)} images")
    if on_cpu and images.device.type == "cuda":
        joined = joined.pin_memory().to(images.device, non_blocking=True)
    return tuple(len(batch) for batch in tensors), joined
