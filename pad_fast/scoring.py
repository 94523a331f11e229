"""Difficulty of every training image (EL2N, GraNd, forgetting) and the easy-to-hard order it gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from . import files, native
from .data import DSA, ImageDataset, Normalization, fit_normalization, load_dataset
from .device import resolve_device
from .errors import ConfigError, InputError, StoreError, nearest
from .models.flat import embed
from .optimizers import SGD
from .progress import Progress
from .rng import generator
from .training import NetworkSpec, Trainer, shuffled_batches

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

    The compiled extension computes it where it can (CPU, float32 or float64, no gradient wanted); otherwise the
    formula is evaluated in float64, so that images which are classified with near certainty keep distinct scores.

    Args:
        logits: `[N, classes]`, floating point.
        labels: int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, in [0, sqrt(2)], dtype and device of `logits`.

    Raises:
        InputError: shapes, dtypes or labels that do not fit.

    Example:
        >>> el2n(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))
        tensor([0.7071])
    """
    _check_scored(logits, labels)
    if _native_serves(logits):
        return native.el2n(logits.contiguous(), labels.contiguous())
    return el2n_naive(logits.double(), labels).to(logits.dtype)


def grand(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Norm of each image's own gradient of the last layer, weights and bias: `EL2N * sqrt(1 + ||h||^2)`.

    Args:
        logits: `[N, classes]`, floating point.
        features: penultimate features h `[N, F]`, dtype and device of `logits`.
        labels: int64 `[N]`, each in [0, classes).

    Returns:
        `[N]`, dtype and device of `logits`.

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
    return grand_naive(logits.double(), features.double(), labels).to(logits.dtype)


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


def _native_serves(*tensors: Tensor) -> bool:
    return native.available() and all(
        tensor.device.type == "cpu" and tensor.dtype in native.FLOATS and not tensor.requires_grad for tensor in tensors
    )


def _check_scored(logits: Tensor, labels: Tensor) -> None:
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        raise InputError(f"logits are {logits.dtype} {list(logits.shape)}; expected floating point [N, classes]")
    if labels.dtype != torch.int64 or list(labels.shape) != [len(logits)]:
        raise InputError(f"labels are {labels.dtype} {list(labels.shape)}; expected int64 [{len(logits)}]")
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
    """

    scores: Tensor
    order: list[Tensor]
    method: str
    fingerprint: str = ""

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
        described = {
            "format": "pad_fast difficulty 1",
            "method": self.method,
            "fingerprint": self.fingerprint,
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
        return cls(scores, order, method, fingerprint)

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
    progress: Progress | None = None,
) -> Difficulty:
    """Train a few networks for a few epochs and average each image's score over them (arXiv 2107.07075, 1812.05159).

    Scores are taken in eval mode without augmentation, and never divided by a batch size.

    Args:
        dataset: anything :func:`pad_fast.load_dataset` takes.
        method: "el2n"; "grand" (last layer, closed form); "forgetting" (times an image goes from right to wrong
            between epochs; an image never learnt counts as `epochs`).
        model, networks, epochs, batch, lr, momentum: the score networks and their SGD.
        dsa: augmentation during training, a DSA strategy or "none".
        normalization: how pixels are normalised; fitted to the data when None (`zca` chooses ZCA).
        seed: same seed, same scores.

    Raises:
        ConfigError: unknown method, a count below 1, or a learning rate that is not positive.
        InputError: the networks diverged.

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
    progress = progress or Progress()
    data = load_dataset(dataset, data_dir=data_dir)
    where = resolve_device(device)
    normalization = normalization or fit_normalization(data, "zca" if zca else "mean-std")
    images = normalization.apply(data.train_images).to(where)
    labels = data.train_labels.to(where)
    augment = None if dsa == "none" else DSA(dsa)

    spec = NetworkSpec(model, data.channels, data.classes, data.resolution)
    total = torch.zeros(len(labels), dtype=torch.float64)
    for index in progress.track(range(networks), "scores", total=networks, unit="network"):
        draws = generator(seed, "score draws", index)
        trainer = Trainer(spec.build(seed, "score network", index), device=where, backend=backend)
        optimizer = SGD(lr, momentum=momentum)
        forgetting = _Forgetting(epochs)
        everything = torch.arange(len(labels), device=where)
        for _ in range(epochs):
            batches = shuffled_batches(everything, batch, draws)
            trainer.epoch(images, labels, batches, optimizer, _with_generator(augment, draws))
            if method == "forgetting":
                forgetting.observe(trainer.logits(images).argmax(-1) == labels)
        if method == "forgetting":
            total += forgetting.counts()
        else:
            total += _scores(trainer, images, labels, method).double().cpu()
    scores = (total / networks).float()
    if not bool(scores.isfinite().all()):
        raise InputError(f"the score networks diverged with learning rate {lr:g}; lower it")
    order = class_order(scores, data.train_labels, data.classes)
    return Difficulty(scores, order, method, data.fingerprint)


def _with_generator(augment: DSA | None, draws: torch.Generator) -> Callable[[Tensor], Tensor] | None:
    if augment is None:
        return None
    # One device-independent stream per network, drawn on the CPU.
    return lambda images: augment(images, generator=draws)


def _scores(trainer: Trainer, images: Tensor, labels: Tensor, method: str) -> Tensor:
    if method == "el2n":
        return el2n(trainer.logits(images), labels)
    module = trainer.network.load(trainer.theta)
    module.eval()
    pieces = []
    with torch.no_grad():
        for start in range(0, len(images), 512):
            features = embed(module, images[start : start + 512])
            logits = module.get_submodule("classifier")(features)
            pieces.append(grand(logits, features, labels[start : start + 512]))
    return torch.cat(pieces)


class _Forgetting:
    """Counts right-to-wrong flips between consecutive observations."""

    def __init__(self, never: int) -> None:
        self.never = never
        self.flips: Tensor | None = None
        self.before: Tensor | None = None
        self.ever: Tensor | None = None

    def observe(self, correct: Tensor) -> None:
        correct = correct.cpu()
        if self.flips is None or self.before is None or self.ever is None:
            self.flips, self.ever = torch.zeros(len(correct), dtype=torch.float64), correct
        else:
            self.flips += self.before & ~correct
            self.ever = self.ever | correct
        self.before = correct

    def counts(self) -> Tensor:
        assert self.flips is not None and self.ever is not None  # observe() ran: epochs >= 1
        return torch.where(self.ever, self.flips, float(self.never))


def _require_permutation(order: list[Tensor], path: Path) -> int:
    everything = torch.cat(order)
    count = len(everything)
    if not torch.equal(everything.sort().values, torch.arange(count)):
        raise StoreError(
            f"{path}: the {count} indices are not a permutation of 0..{count - 1}; each image must occur once"
        )
    return count
