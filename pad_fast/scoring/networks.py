"""The networks that difficulty scores come from: trained, and kept so that a killed run continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..data import DSA, Normalization
from ..errors import InputError, StoreError
from ..models.flat import embed
from ..models.spec import NetworkSpec
from ..runtime import files, tensor_files
from ..runtime.rng import generator
from ..training.optimizers import SGD
from ..training.trainer import Trainer, TrainingStreams, together

_FORMAT = "pad_fast score network 1"
_CHUNK = 512  # images in a forward pass


@dataclass(frozen=True)
class ScoreRecipe:
    """How every score network is trained; network i depends on (recipe, seed, i) only.

    Attributes:
        spec: the network.
        epochs, batch, lr, momentum: plain SGD on hard labels.
        dsa: augmentation strategy or "none".
        seed: of initial weights, batches and augmentation.
        device, backend: where and how it is trained.
    """

    spec: NetworkSpec
    epochs: int
    batch: int
    lr: float
    momentum: float
    dsa: str
    seed: int
    device: torch.device
    backend: str

    def trainer(self, numbers: Sequence[int]) -> Trainer:
        """The networks of these numbers with their first weights."""
        networks = [self.spec.build(self.seed, "score network", number) for number in numbers]
        return Trainer(networks, device=self.device, backend=self.backend)

    def together(self, batch: int) -> int:
        """How many networks are best taken together on batches of `batch` images."""
        return together(self.spec.build(self.seed, "probe"), batch, device=self.device, backend=self.backend)

    def key(self, fingerprint: str, normalization: Normalization) -> str:
        """Digest of everything a network depends on, to tell kept ones from those of other settings."""
        digest = hashlib.sha256()
        described = {**vars(self), "spec": vars(self.spec), "device": self.device.type}
        digest.update(json.dumps([described, fingerprint, torch.__version__], sort_keys=True).encode())
        for name, tensor in sorted(normalization.state().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ScoreNetwork:
    """One trained network.

    Attributes:
        theta: parameters `[P]`.
        buffers: of the module (batch-norm statistics), by name.
        forgetting: float32 `[N]`: how often each image went from right to wrong; `epochs` where it was never right.
    """

    theta: Tensor
    buffers: dict[str, Tensor]
    forgetting: Tensor

    def save(self, path: Path, key: str) -> None:
        """Write it atomically; equal networks give equal bytes."""
        buffers = {f"buffer.{name}": tensor for name, tensor in self.buffers.items()}
        tensors = {"theta": self.theta, "forgetting": self.forgetting, **buffers}
        files.write_bytes(path, tensor_files.pack_tensors(tensors, {"format": _FORMAT, "key": key}))

    @classmethod
    def load(cls, path: Path, key: str) -> ScoreNetwork:
        """Read a file of :meth:`save`.

        Raises:
            StoreError: truncated or foreign, or of other settings.
        """
        try:
            tensors, described = tensor_files.unpack_tensors(path.read_bytes())
            written = described["key"]
            theta, forgetting = tensors.pop("theta"), tensors.pop("forgetting")
        except OSError as error:
            raise StoreError(f"cannot read score network {path}: {error.strerror or error}") from error
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is not a score network of pad_fast ({error}); delete it") from error
        if written != key:
            raise StoreError(
                f"{path} was trained with other settings or on other data; choose another folder, or delete this one"
            )
        return cls(theta, {name.removeprefix("buffer."): t for name, t in tensors.items()}, forgetting)


def train_score_networks(
    recipe: ScoreRecipe, numbers: Sequence[int], images: Tensor, labels: Tensor
) -> list[ScoreNetwork]:
    """Train the networks of these numbers on normalised `images` `[N, C, H, W]`, recording what they forget."""
    trainer = recipe.trainer(numbers)
    generators = [generator(recipe.seed, "score draws", number) for number in numbers]
    streams = TrainingStreams(trainer, generators, DSA(recipe.dsa))
    optimizer = SGD(recipe.lr, momentum=recipe.momentum)
    forgetting = Forgetting(labels, recipe.epochs, networks=len(numbers) if trainer.stacked else None)
    everything = torch.arange(len(labels), device=images.device)
    for _ in range(recipe.epochs):
        batches = streams.batches(everything, recipe.batch)
        trainer.epoch(images, labels, batches, optimizer, streams.augment, forgetting.observe)
    buffers = {name: buffer.cpu().clone() for name, buffer in trainer.network.module.named_buffers()}
    trained = (tensor.cpu().view(len(numbers), -1) for tensor in (trainer.theta, forgetting.counts()))
    return [ScoreNetwork(theta, buffers, counts) for theta, counts in zip(*trained, strict=True)]


class Forgetting:
    """Forgetting events (Toneva et al. 2019, arXiv 1812.05159), counted while training at no cost.

    An image is looked at whenever it is in a batch, once an epoch: an event is an image that was classified right the
    time before and is wrong now, with the logits of the training step itself.

    Args:
        labels: int64 `[N]`.
        epochs: what an image that is never right counts.
        networks: K, where several are trained together; whatever has a shape below then has K in front of it.
    """

    def __init__(self, labels: Tensor, epochs: int, *, networks: int | None = None) -> None:
        self.labels, self.epochs = labels, epochs
        shape = (len(labels),) if networks is None else (networks, len(labels))
        self.events = torch.zeros(shape, device=labels.device)
        self.right = torch.zeros(shape, dtype=torch.bool, device=labels.device)
        self.ever = self.right.clone()

    def observe(self, batch: Tensor, logits: Tensor) -> None:
        """Record the `logits` `[B, classes]` of the images with indices `batch` `[B]`, each there once."""
        right = logits.argmax(-1) == self.labels[batch]
        forgotten = self.right.gather(-1, batch) & ~right
        self.events.scatter_(-1, batch, self.events.gather(-1, batch) + forgotten)
        self.ever.scatter_(-1, batch, self.ever.gather(-1, batch) | right)
        self.right.scatter_(-1, batch, right)

    def counts(self) -> Tensor:
        """Events of each image, `epochs` for one that was never right: float32 `[N]`."""
        return torch.where(self.ever, self.events, float(self.epochs))


class Folder:
    """Where finished networks are kept; None keeps them in memory only."""

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self.path = None if path is None else files.require_writable(path)
        self.key = key

    def get(self, index: int) -> ScoreNetwork | None:
        """Network `index`, if it is finished."""
        path = self._file(index)
        return ScoreNetwork.load(path, self.key) if path is not None and path.exists() else None

    def put(self, index: int, network: ScoreNetwork) -> None:
        """Keep network `index`."""
        path = self._file(index)
        if path is not None:
            network.save(path, self.key)

    def _file(self, index: int) -> Path | None:
        return None if self.path is None else self.path / f"network-{index:04}.safetensors"


class Scorer:
    """Trained networks in eval mode: logits, and features where they are asked for, of any images."""

    def __init__(self, recipe: ScoreRecipe, networks: Sequence[ScoreNetwork], *, wants_features: bool) -> None:
        self.trainers = []
        most = 1 if wants_features else recipe.together(_CHUNK)
        for first in range(0, len(networks), most):
            group = networks[first : first + most]
            trainer = recipe.trainer(range(first, first + len(group)))
            buffers: dict[str, Any] = dict(trainer.network.module.named_buffers())
            for name, value in group[0].buffers.items():  # networks that have some are alone in their group
                buffers[name].copy_(value)
            trainer.theta = torch.stack([network.theta for network in group]).view_as(trainer.theta).to(recipe.device)
            trainer.network.module.eval()
            if wants_features:
                trainer.network.load(trainer.theta)
            self.trainers.append(trainer)
        self.wants_features = wants_features

    def running(self) -> AbstractContextManager[None]:
        """Held around many calls."""
        return nullcontext() if self.wants_features else self.trainers[0].engine.running()

    def __call__(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """For each network, logits `[B, classes]` of normalised images, and features `[B, F]` or None."""
        for trainer in self.trainers:
            if not self.wants_features:
                logits = trainer.forward(images)
                yield from ((own, None) for own in (logits if trainer.stacked else [logits]))
                continue
            module = trainer.network.module
            with torch.no_grad():
                features = embed(module, images)
                yield module.get_submodule("classifier")(features), features


def require_features(recipe: ScoreRecipe) -> None:
    """Say before any training that a network cannot give the features GraNd needs.

    Raises:
        InputError: it has no `embed` method or no submodule `classifier`.
    """
    module = recipe.spec.build(recipe.seed, "probe").module
    if not hasattr(module, "embed") or not isinstance(getattr(module, "classifier", None), torch.nn.Module):
        raise InputError(
            f"GraNd needs the penultimate features, but {recipe.spec.model} has no embed() and classifier; use el2n"
        )


def chunks(count: int) -> list[slice]:
    """The images of one forward pass after the other."""
    return [slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
