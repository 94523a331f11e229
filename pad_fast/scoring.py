"""Difficulty of every training image (EL2N, GraNd, forgetting) and the easy-to-hard order it gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from . import distributed, files, native, score_networks
from .data import DSA, ImageDataset, Normalization, fit_normalization, load_dataset
from .device import resolve_device
from .distributed import ALONE
from .errors import ConfigError, InputError, StoreError, nearest
from .progress import Progress
from .score_networks import Recipe, ScoreNetwork
from .training import NetworkSpec, in_groups

METHODS = ("el2n", "grand", "forgetting")


def el2n_naive(logits: Tensor, labels: Tensor) -> Tensor:
    """:func:`el2n` in the formula's own words; any floating dtype and device, differentiable."""
    onehot = torch.nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return torch.linalg.vector_norm(logits.softmax(-1) - onehot, dim=1)


def grand_naive(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """:func:`grand` in the formula's own words; any floating dtype and device, differentiable."""
    return el2n_naive(logits, labels) * (1 + features.square().sum(1)).sqrt()


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """`||softmax(z) - onehot(label)||_2` per row (arXiv 2107.07075).

    The compiled extension computes it where it can (float32, float64 or bfloat16, no gradient wanted); otherwise the
    formula is evaluated in float64, so that images which are classified with near certainty keep distinct scores.

    Args:
        logits: `[N, classes]`, floating point.
        labels: int32 or int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, in [0, sqrt(2)], on the device of `logits`: float64 for float64, else float32 (scores in a half
        precision would be mostly ties).

    Raises:
        InputError: shapes, dtypes or labels that do not fit.

    Example:
        >>> el2n(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([0.7071])
    """
    _check_scored(logits, labels)
    if _native_serves(logits):
        return native.el2n(logits.contiguous(), labels.contiguous())
    return el2n_naive(logits.double(), labels.long()).to(native.score_dtype(logits.dtype))


def grand(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Norm of each image's own gradient of the last layer, weights and bias: `EL2N * sqrt(1 + ||h||^2)`.

    Args:
        logits: `[N, classes]`, floating point.
        features: penultimate features h `[N, F]`, dtype and device of `logits`.
        labels: int32 or int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, dtype and device as in :func:`el2n`.

    Raises:
        InputError: shapes, dtypes or labels that do not fit.

    Example:
        >>> grand(torch.zeros(1, 2), torch.tensor([[2.0, 2.0, 4.0]]), torch.tensor([1]))
        tensor([3.5355])
    """
    _check_scored(logits, labels)
    if features.dim() != 2 or len(features) != len(logits) or features.dtype != logits.dtype:
        raise InputError(
            f"features are {features.dtype} {list(features.shape)} beside logits {logits.dtype} "
            f"{list(logits.shape)}; expected one row per image and the same dtype"
        )
    if _native_serves(logits, features):
        return native.grand(logits.contiguous(), features.contiguous(), labels.contiguous())
    return grand_naive(logits.double(), features.double(), labels.long()).to(native.score_dtype(logits.dtype))


def class_order(scores: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Dataset indices per class from easy (low score) to hard, ties by index.

    Args:
        scores: `[N]`, float32 or float64 on the CPU, free of NaN.
        labels: int64 `[N]` on the CPU, each in [0, classes).
        classes: how many; one without images gets an empty tensor.

    Example:
        >>> class_order(torch.tensor([0.5, 0.1, 0.5, 0.2]), torch.tensor([1, 0, 1, 1]), 2)
        [tensor([1]), tensor([3, 0, 2])]
    """
    if native.available():
        return native.class_order(scores, labels, classes)
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return [indices[scores[indices].argsort(stable=True)] for indices in members]


class RunningScores:
    """Mean and variance of every image's score over networks, without ever holding more than the two.

    Networks are added in any number of batches of images; each image sees its networks in the same order.

    Attributes:
        mean: float64 `[N]`, of the networks added so far.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.mean = torch.zeros(count, dtype=torch.float64, device=device)
        self._deviations = torch.zeros_like(self.mean)

    def add(self, network: int, rows: slice, logits: Tensor, labels: Tensor, features: Tensor | None = None) -> None:
        """Add the scores of images `rows` under network number `network` (from 0): EL2N, or GraNd with `features`."""
        mean, deviations = self.mean[rows], self._deviations[rows]
        if _native_serves(logits, *([] if features is None else [features])):
            whole = None if features is None else features.contiguous()
            native.accumulate(mean, deviations, network, logits.contiguous(), labels.contiguous(), features=whole)
            return
        # The formulas: el2n() and grand() would wait for the device to see whether the labels are classes.
        scores = (
            el2n_naive(logits.double(), labels)
            if features is None
            else grand_naive(logits.double(), features.double(), labels)
        )
        before = mean if network else scores
        delta = scores - before
        mean.copy_(before + delta / (network + 1))
        deviations.mul_(bool(network)).add_(delta * (scores - mean))

    def variance(self, networks: int) -> Tensor:
        """Unbiased variance over the `networks` added, float64 `[N]`; 0 for a single one."""
        return self._deviations / max(networks - 1, 1)


def _native_serves(*tensors: Tensor) -> bool:
    if not native.available() or any(t.requires_grad or t.dtype not in native.FLOATS for t in tensors):
        return False
    kinds = {tensor.device.type for tensor in tensors}
    return kinds == {"cpu"} or (kinds == {"cuda"} and bool(native.build_info()["cuda"]))


def _check_scored(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise InputError(f"logits are {logits.dtype} {list(logits.shape)}; expected floating point [N, classes]")
    if labels.dtype not in native.LABELS or list(labels.shape) != [len(logits)]:
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}; expected int32 or int64 [{len(logits)}]")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise InputError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}; with {logits.shape[1]} classes they lie "
            f"in [0, {logits.shape[1]})"
        )


@dataclass(frozen=True, eq=False)
class Difficulty:
    """How hard each training image is.

    Attributes:
        scores: `[N]`, higher = harder; where only an order is known (the reference's files), the rank within the
            class divided by the class size.
        order: per class, dataset indices easy to hard, ties by index.
        method: "el2n", "grand", "forgetting", or "order" for a file of the reference.
        fingerprint: of the data set it belongs to; empty when unknown.
        variance: `[N]`, of the score over networks (unbiased; 0 for a single one), or None where unknown.
        forgetting: `[N]`, forgetting events of each image, averaged over networks, or None where unknown.
        settings: how the scores were made: networks, epochs and so on; empty where unknown.
    """

    scores: Tensor
    order: list[Tensor]
    method: str
    fingerprint: str = ""
    variance: Tensor | None = None
    forgetting: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Difficulty({self.method}, {len(self.scores):,} images, {len(self.order)} classes)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write scores and order atomically: safetensors, or for a name ending in `.pt` the reference's index table.

        Raises:
            StoreError: a `.pt` table needs classes of equal size.
        """
        if Path(path).suffix == ".pt":
            if len({len(indices) for indices in self.order}) != 1:
                sizes = sorted({len(indices) for indices in self.order})
                raise StoreError(
                    f"the reference's .pt table is rectangular, but class sizes are {sizes}; save as .safetensors"
                )
            return files.write_torch(path, torch.stack(self.order))
        tensors = {
            "scores": self.scores.cpu().contiguous(),
            "order": torch.cat(self.order),
            "class_sizes": torch.tensor([len(indices) for indices in self.order]),
        }
        for name in ("variance", "forgetting"):
            if (values := getattr(self, name)) is not None:
                tensors[name] = values
        described = {
            "format": "pad_fast difficulty 1",
            "method": self.method,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
        }
        return files.write_bytes(path, files.pack_tensors(tensors, described))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Difficulty:
        """Read a file of ours, or the reference's `.pt` index table `[classes, n_c]`.

        Raises:
            StoreError: missing, truncated or foreign file, or a table that is not an order of a data set.
        """
        path = Path(path)
        if path.suffix == ".pt":
            return cls._from_table(files.read_torch(path, "order table"), path)
        try:
            tensors, described = files.unpack_tensors(path.read_bytes())
            order = list(tensors["order"].split(tensors["class_sizes"].tolist()))
            scores, method, fingerprint = tensors["scores"], described["method"], described["fingerprint"]
        except OSError as error:
            raise StoreError(f"cannot read difficulty scores {path}: {error.strerror or error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path} does not hold difficulty scores of pad_fast ({error})") from error
        _require_permutation(order, path)
        more = {name: tensors.get(name) for name in ("variance", "forgetting")}
        return cls(scores, order, method, fingerprint, **more, settings=described.get("settings", {}))

    @classmethod
    def _from_table(cls, table: Any, path: Path) -> Difficulty:
        try:
            order = [torch.as_tensor(row).reshape(-1) for row in table]
            if not order or any(row.is_floating_point() or row.dtype == torch.bool for row in order):
                raise TypeError("rows must hold integers")
            order = [row.to(torch.int64) for row in order]
        except (TypeError, ValueError, RuntimeError) as error:
            raise StoreError(f"{path} is not an index table [classes, images per class] ({error})") from error
        scores = torch.empty(_require_permutation(order, path))
        for row in order:
            scores[row] = torch.arange(len(row), dtype=torch.float32) / len(row)
        return cls(scores, order, "order")

    def require(self, data: ImageDataset) -> None:
        """Check that this order belongs to `data`.

        Raises:
            StoreError: other images, other labels, or an index filed under a class it does not belong to.
        """
        if self.fingerprint and self.fingerprint != data.fingerprint:
            raise StoreError("these difficulty scores were computed on another data set (fingerprints differ)")
        if len(self.order) != data.classes or len(self.scores) != len(data.train_labels):
            raise StoreError(
                f"the order covers {len(self.scores)} images in {len(self.order)} classes, but {data.name} has "
                f"{len(data.train_labels)} in {data.classes}"
            )
        for label, indices in enumerate(self.order):
            if not bool((data.train_labels[indices] == label).all()):
                raise StoreError(f"the order lists images of other classes under class {label} of {data.name}")


def score(
    dataset: Any,
    *,
    method: str = "el2n",
    model: str = "ConvNet",
    networks: int = 10,
    epochs: int = 10,
    batch: int = 256,
    lr: float = 0.01,
    momentum: float = 0.0,
    dsa: str = "none",
    normalization: Normalization | None = None,
    zca: bool = False,
    seed: int = 0,
    device: str = "auto",
    backend: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    networks_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Difficulty:
    """Train a few networks for a few epochs and average each image's score over them (arXiv 2107.07075, 1812.05159).

    After their training, one pass over the data scores all networks, in eval mode without augmentation. An engine for
    GPUs takes as many networks together as keep the GPU busy, which changes each by rounding only. Scores are never
    divided by a batch size.

    Args:
        dataset: anything :func:`pad_fast.load_dataset` takes.
        method: "el2n"; "grand" (last layer, closed form); "forgetting" (times an image goes from right to wrong
            between the epochs' looks at it; an image never learnt counts as `epochs`).
        model, networks, epochs, batch, lr, momentum: the score networks and their SGD.
        dsa: augmentation during training, a DSA strategy or "none".
        normalization: how pixels are normalised; fitted to the data when None (`zca` chooses ZCA).
        seed: same seed, same scores.
        networks_dir: folder that keeps each network as soon as it is trained. A killed call is continued by repeating
            it and gives the result of an undisturbed one; with another method or more networks, those that are there
            are used again.

    Returns:
        The scores, their variance over networks, the order they give, and each image's forgetting events.

    Raises:
        ConfigError: unknown method, a count below 1, or a learning rate that is not positive.
        InputError: the networks diverged.
        StoreError: `networks_dir` cannot be written to, or holds networks of other settings.

    Example:
        >>> difficulty = score("digits", model="ConvNetD1W8", networks=1, epochs=1, progress=Progress(quiet=True))
        >>> len(difficulty.scores), len(difficulty.order)
        (1437, 10)
    """
    if method not in METHODS:
        raise ConfigError(
            f"unknown score method {method!r}; use one of {', '.join(METHODS)}.{nearest(method, METHODS)}"
        )
    for name, value in (("networks", networks), ("epochs", epochs), ("batch", batch)):
        if value < 1:
            raise ConfigError(f"score {name} is {value}; it must be at least 1")
    if not lr > 0:
        raise ConfigError(f"score learning rate is {lr}; it must be positive")
    if dsa != "none":
        DSA(dsa)
    progress = progress or Progress()
    data = load_dataset(dataset, data_dir=data_dir)
    where = resolve_device(device)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std")
    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    recipe = Recipe(spec, epochs, batch, lr, momentum, dsa, seed, where, backend)
    if method == "grand":
        score_networks.require_features(recipe)
    key = recipe.key(data.fingerprint, normalization)

    @cache
    def prepared() -> tuple[Tensor, Tensor]:
        return normalization.apply(data.train_images).to(where), data.train_labels.to(where)

    trained = _trained(recipe, networks, prepared, score_networks.Folder(networks_dir, key), progress)

    events = torch.stack([network.forgetting for network in trained]).double()  # [networks, N]
    forgetting = events.mean(0)
    if method == "forgetting":
        mean, variance = forgetting, events.var(0, correction=min(1, networks - 1))
    else:
        running = _one_pass(recipe, trained, *prepared(), method, progress)
        mean, variance = running.mean.cpu(), running.variance(networks).cpu()
    scores = mean.float()
    if not bool(scores.isfinite().all()):
        raise InputError(f"the score networks diverged with learning rate {lr:g}; lower it")
    return Difficulty(
        scores,
        class_order(scores, data.train_labels, data.classes),
        method,
        data.fingerprint,
        variance=variance.float(),
        forgetting=forgetting.float(),
        settings={
            "dataset": data.name,
            "model": model,
            "networks": networks,
            "epochs": epochs,
            "batch": batch,
            "lr": lr,
            "momentum": momentum,
            "dsa": dsa,
            "normalization": normalization.kind,
            "seed": seed,
        },
    )


def _trained(
    recipe: Recipe,
    networks: int,
    prepared: Callable[[], tuple[Tensor, Tensor]],
    folder: score_networks.Folder,
    progress: Progress,
) -> list[ScoreNetwork]:
    """The first `networks` networks: those in the folder, and the others trained now, by all ranks together.

    Args:
        prepared: gives normalised images and labels, on the device.
    """
    found = [folder.get(index) for index in range(networks)]
    done = sum(network is not None for network in found)
    if done:
        progress.say(f"scores: {done} of {networks} networks are trained already")
    if done == networks:
        return [network for network in found if network is not None]
    images, labels = prepared()
    missing = [index for index, network in enumerate(found) if network is None]
    # Without a folder, ranks could not hand networks to each other, and each of them trains all.
    group = ALONE if folder.path is None else distributed.group()
    group.wait("the other ranks to look for score networks")
    own = group.turns(missing)
    most = recipe.together(min(recipe.batch, len(labels)))

    def trained() -> Iterator[tuple[int, ScoreNetwork]]:
        for numbers in in_groups(own, most):
            yield from zip(numbers, score_networks.train(recipe, numbers, images, labels), strict=True)

    for index, network in progress.track(
        trained(), "scores: training", total=done + len(own), done=done, unit="network"
    ):
        if not bool(network.theta.isfinite().all()):
            raise InputError(f"score network {index} diverged with learning rate {recipe.lr:g}; lower it")
        folder.put(index, network)
        found[index] = network
    group.wait("the score networks of other ranks")
    found = [folder.get(index) if network is None else network for index, network in enumerate(found)]
    return [network for network in found if network is not None]


def _one_pass(
    recipe: Recipe,
    networks: list[ScoreNetwork],
    images: Tensor,
    labels: Tensor,
    method: str,
    progress: Progress,
) -> RunningScores:
    """All networks' scores from one pass over the images; only a chunk's logits exist at a time."""
    scorer = score_networks.Scorer(recipe, networks, wants_features=method == "grand")
    running = RunningScores(len(labels), recipe.device)
    pieces = score_networks.chunks(len(labels))
    with scorer.running():
        for rows in progress.track(pieces, "scores: one pass", total=len(pieces), unit="batch"):
            for index, (logits, features) in enumerate(scorer(images[rows])):
                running.add(index, rows, logits, labels[rows], features)
    return running


def _require_permutation(order: list[Tensor], path: Path) -> int:
    everything = torch.cat(order)
    count = len(everything)
    if not torch.equal(everything.sort().values, torch.arange(count)):
        raise StoreError(
            f"{path}: the {count} indices are not a permutation of 0..{count - 1}; each image must occur once"
        )
    return count
