"""The networks that difficulty scores come from: trained, and kept so that a killed run continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import DSA, Normalization
from ..errors import InputError, StoreError
from ..models.spec import NetworkSpec
from ..runtime import distributed, files, tensor_files
from ..runtime.distributed import ALONE
from ..runtime.progress import Progress
from ..runtime.rng import generator
from ..training.optimizers import SGD
from ..training.trainer import Trainer, TrainingStreams, in_groups, together
from .forgetting import Forgetting

_FORMAT = "pad_fast score network 1"


@dataclass(frozen=True)
class ScoreRecipe:
    """Settings of every score network; network i depends on (recipe, seed, i) only.

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
        """Number of networks that are best taken together on batches of `batch` images."""
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
            StoreError: truncated or foreign, of another format, or of other settings.
        """
        way_out = "delete it to train this network again"
        with tensor_files.read_tensors(path, "score network", _FORMAT, way_out=way_out) as (tensors, described):
            written = described["key"]
            theta, forgetting = tensors.pop("theta"), tensors.pop("forgetting")
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


def trained_networks(
    recipe: ScoreRecipe,
    networks: int,
    prepared: Callable[[], tuple[Tensor, Tensor]],
    folder: NetworkFolder,
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
            yield from zip(numbers, train_score_networks(recipe, numbers, images, labels), strict=True)

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


class NetworkFolder:
    """Folder of finished networks; None keeps them in memory only."""

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
