"""Normalisation of images before training: ZCA whitening or per-channel mean and standard deviation.

ZCA (Krizhevsky 2009, as used by KIP, Nguyen et al. 2021, arXiv 2107.13034) on flattened training pixels x with
mean mu and covariance C = sum (x - mu)'(x - mu) / (n - 1) = U diag(S) U':

    T = U diag((S + eps)^-1/2) U',   T^-1 = U diag((S + eps)^1/2) U',   apply: (x - mu) T,   invert: z T^-1 + mu.

A distilled image lives in the normalised space, so the normalisation is stored with it: `state()` is a dict of
tensors and :func:`normalization_from_state` reads it back.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, InputError, StoreError, nearest
from ..runtime import files, tensor_files
from ..runtime.progress import Progress

if TYPE_CHECKING:
    from .datasets import ImageDataset

NORMALIZATIONS = ("zca", "mean-std")

# Beyond this the covariance alone is 2.1 GB in float64 and its decomposition holds about five such matrices.
ZCA_LIMIT = 16_384

SAVED = "pad_fast normalization 1"
"""Format of :meth:`Normalization.save`."""

_FITTED = "pad_fast zca 1"  # a run's own, found by the fingerprint of its data
_CHUNK = 4096  # images per covariance update: bounds the float64 copy without slowing the product

logger = logging.getLogger("pad_fast")


class Normalization(ABC):
    """An invertible affine map of images, fitted on the training set."""

    kind: ClassVar[str]

    @abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Pixels `[N, C, H, W]` to normalised images of the same shape, dtype and device; differentiable."""

    @abstractmethod
    def invert(self, images: Tensor) -> Tensor:
        """Normalised images `[N, C, H, W]` back to pixels."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Contiguous CPU tensors that :func:`normalization_from_state` turns back into this object."""

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a `.safetensors` file, which :func:`pad_fast.load_normalization` reads.

        Raises:
            StoreError: another suffix, or the folder cannot be written to.
        """
        if Path(path).suffix != ".safetensors":
            raise StoreError(f"a normalization is not written to {path}; name a file that ends in .safetensors")
        return files.write_bytes(path, _packed(self.state(), {"format": SAVED}))


@dataclass(frozen=True, eq=False, repr=False)
class MeanStd(Normalization):
    """(x - mean) / std per channel.

    Attributes:
        mean, std: float32 `[C]`.

    Raises:
        InputError: shapes differ, or a standard deviation is not positive and finite.

    Example:
        >>> normalization = MeanStd(torch.tensor([0.5]), torch.tensor([0.25]))
        >>> normalization.apply(torch.ones(1, 1, 2, 2)).max().item()
        2.0
    """

    mean: Tensor
    std: Tensor
    kind: ClassVar[str] = "mean-std"

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.mean.shape != self.std.shape:
            raise InputError(
                f"mean-std normalisation needs one mean and one std per channel, got shapes "
                f"{list(self.mean.shape)} and {list(self.std.shape)}."
            )
        if not bool(torch.isfinite(self.mean).all() and torch.isfinite(self.std).all() and (self.std > 0).all()):
            raise InputError(
                f"mean-std normalisation needs finite means and positive stds, got mean {self.mean.tolist()}, "
                f"std {self.std.tolist()}."
            )

    def __repr__(self) -> str:
        mean, std = ([round(value, 4) for value in t.tolist()] for t in (self.mean, self.std))
        return f"MeanStd(mean={mean}, std={std})"

    def apply(self, images: Tensor) -> Tensor:
        mean, std = self._broadcast(images)
        return (images - mean) / std

    def invert(self, images: Tensor) -> Tensor:
        mean, std = self._broadcast(images)
        return images * std + mean

    def state(self) -> dict[str, Tensor]:
        return {"mean": _stored(self.mean), "std": _stored(self.std)}

    def _broadcast(self, images: Tensor) -> tuple[Tensor, Tensor]:
        _check_batch(images)
        if images.shape[1] != self.mean.numel():
            raise InputError(
                f"this normalisation was fitted on {self.mean.numel()} channels, the images {list(images.shape)} "
                f"have {images.shape[1]}."
            )
        mean, std = (t.to(device=images.device, dtype=images.dtype)[:, None, None] for t in (self.mean, self.std))
        return mean, std


@dataclass(frozen=True, eq=False, repr=False)
class ZCA(Normalization):
    """ZCA whitening, formulas in the module's docstring.

    Attributes:
        mean: float32 `[C, H, W]`.
        transform, inverse: float32 `[D, D]` symmetric, D = C * H * W; T and T^-1.
        eps: regulariser added to the covariance's eigenvalues.

    Raises:
        InputError: the shapes do not fit together.
    """

    mean: Tensor
    transform: Tensor
    inverse: Tensor
    eps: float
    kind: ClassVar[str] = "zca"

    def __post_init__(self) -> None:
        square = (self.mean.numel(),) * 2
        if self.mean.dim() != 3 or self.transform.shape != square or self.inverse.shape != square:
            raise InputError(
                f"ZCA needs a mean [C, H, W] and two [C*H*W, C*H*W] matrices, got {list(self.mean.shape)}, "
                f"{list(self.transform.shape)} and {list(self.inverse.shape)}."
            )

    def __repr__(self) -> str:
        return f"ZCA({'x'.join(map(str, self.mean.shape))} images, eps={self.eps:g})"

    def apply(self, images: Tensor) -> Tensor:
        flat = self._flat(images)
        mean, transform = self._like(self.mean.flatten(), images), self._like(self.transform, images)
        # (x - mu) T as x T - mu T: no centred copy of the whole data set.
        return torch.addmm(-(mean @ transform), flat, transform).view(images.shape)

    def invert(self, images: Tensor) -> Tensor:
        flat = self._flat(images)
        mean, inverse = self._like(self.mean.flatten(), images), self._like(self.inverse, images)
        return torch.addmm(mean, flat, inverse).view(images.shape)

    def state(self) -> dict[str, Tensor]:
        return {
            "mean": _stored(self.mean),
            "transform": _stored(self.transform),
            "inverse": _stored(self.inverse),
            "eps": torch.tensor(self.eps, dtype=torch.float64),
        }

    def _flat(self, images: Tensor) -> Tensor:
        _check_batch(images)
        if images.shape[1:] != self.mean.shape:
            raise InputError(
                f"this whitening was fitted on images {list(self.mean.shape)}, got {list(images.shape[1:])}."
            )
        return images.flatten(1)

    @staticmethod
    def _like(values: Tensor, images: Tensor) -> Tensor:
        return values.to(device=images.device, dtype=images.dtype)


@dataclass(frozen=True)
class Pixels(Normalization):
    """None yet: the images are pixels, as files of other programs may hold them; :func:`pad_fast.evaluate` applies one.

    Example:
        >>> images = torch.rand(2, 3, 4, 4)
        >>> Pixels().apply(images) is images
        True
    """

    kind: ClassVar[str] = "pixels"

    def apply(self, images: Tensor) -> Tensor:
        return images

    def invert(self, images: Tensor) -> Tensor:
        return images

    def state(self) -> dict[str, Tensor]:
        return {"pixels": torch.ones(())}  # a file holds tensors, so this is one


def fit_zca(
    train_images: Tensor,
    *,
    eps: float = 0.1,
    device: torch.device | str | None = None,
    progress: Progress | bool | None = None,
) -> ZCA:
    """Fit ZCA whitening to pixels.

    The covariance and its eigendecomposition (equal to its SVD, as it is symmetric and positive) are computed in
    float64; the result is float32 on the CPU. 50,000 CIFAR images (D = 3072) take some 45 s of CPU time; 64 px colour
    images (D = 12288) take several minutes of two cores and 5.3 GB, where `device="cuda"` is the way out.

    Args:
        train_images: floating point `[N, C, H, W]`, N >= 2, pixels in [0, 1].
        eps: regulariser; 0.1 is what the published distillation runs use on pixels in [0, 1].
        device: where to compute; the images' device by default.
        progress: told about the covariance and the decomposition; nobody when None.

    Raises:
        InputError: wrong shape or dtype, fewer than two images, NaN or infinite pixels.
        ConfigError: eps is not positive, or C * H * W is above 16,384 (the matrices would need too much memory).

    Example:
        >>> pixels = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> zca = fit_zca(pixels)
        >>> bool((zca.invert(zca.apply(pixels)) - pixels).abs().max() < 1e-5)
        True
    """
    _check_batch(train_images)
    if not 0 < eps < math.inf:
        raise ConfigError(f"ZCA eps is {eps}; it must be positive and finite, 0.1 is the published value.")
    count, size = train_images.shape[0], train_images[0].numel() if len(train_images) else 0
    if count < 2:
        raise InputError(f"ZCA needs at least two training images, got {count}.")
    if size > ZCA_LIMIT:
        shape = "x".join(map(str, train_images.shape[1:]))
        raise ConfigError(
            f"ZCA of {shape} images needs a {size} x {size} covariance: {8 * size**2 / 1e9:.1f} GB in float64, about "
            f"five times that while it is decomposed. The limit is {ZCA_LIMIT} values per image (64 px colour has "
            f"12288). Use mean-std normalisation or a smaller resolution."
        )
    flat = train_images.detach().flatten(1)
    target = torch.device(device) if device is not None else train_images.device
    mean = torch.zeros(size, dtype=torch.float64, device=target)
    for chunk in flat.split(_CHUNK):
        mean += chunk.to(target).sum(0, dtype=torch.float64)
    mean /= count
    if not bool(torch.isfinite(mean).all()):
        raise InputError("ZCA got training images with NaN or infinite pixels; remove those images.")
    covariance = torch.zeros(size, size, dtype=torch.float64, device=target)
    progress, chunks = Progress.of(progress or False), flat.split(_CHUNK)
    for chunk in progress.track(chunks, "zca: covariance", total=len(chunks), unit="chunk"):
        centred = chunk.to(target, torch.float64) - mean
        covariance.addmm_(centred.T, centred)
    covariance /= count - 1
    progress.say(f"zca: decomposing the {size} x {size} covariance")
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    del covariance
    # Rounding makes the null space's eigenvalues slightly negative.
    scale = (eigenvalues.clamp_min(0) + eps).sqrt()
    return ZCA(
        mean=mean.float().cpu().view(train_images.shape[1:]),
        transform=((vectors / scale) @ vectors.T).float().cpu(),
        inverse=((vectors * scale) @ vectors.T).float().cpu(),
        eps=float(eps),
    )


def fit_mean_std(dataset: ImageDataset) -> MeanStd:
    """Mean-std normalisation with the data set's own per-channel numbers."""
    return MeanStd(torch.tensor(dataset.mean), torch.tensor(dataset.std))


def fit_normalization(
    dataset: ImageDataset,
    kind: str,
    *,
    device: torch.device | str | None = None,
    caches: Sequence[Path] = (),
    progress: Progress | bool | None = None,
) -> Normalization:
    """The normalisation named `kind` ("zca" or "mean-std") for a data set.

    Args:
        device: where ZCA is computed; the images' device by default.
        caches: folders where a fitted ZCA of this data set may be; one that is computed is kept in the first.
        progress: told while ZCA is computed; nobody when None.

    Raises:
        ConfigError: unknown kind, or images too large for ZCA.
    """
    if kind == "zca":
        name = f"zca-{dataset.fingerprint}.safetensors"
        for folder in caches:
            found = _read_fitted(folder / name, dataset.fingerprint)
            if found is not None:
                return found
        fitted = fit_zca(dataset.train_images, device=device, progress=progress)
        if caches:
            said = {"format": _FITTED, "fingerprint": dataset.fingerprint}
            files.write_bytes(caches[0] / name, _packed(fitted.state(), said))
        return fitted
    if kind == "mean-std":
        return fit_mean_std(dataset)
    raise ConfigError(
        f"normalisation {kind!r} is unknown; use one of {', '.join(NORMALIZATIONS)}.{nearest(kind, NORMALIZATIONS)}"
    )


def _packed(state: Mapping[str, Tensor], said: Mapping[str, str]) -> bytes:
    return tensor_files.pack_tensors(state, tensor_files.seal({**said, "values": _checksums(state)}))


def _read_fitted(path: Path, fingerprint: str) -> Normalization | None:
    """A fitted ZCA, or None where there is none, or not that of this data set any more."""
    if not path.exists():
        return None
    try:
        return _unpacked(path, _FITTED, {"fingerprint": fingerprint}, way_out="it is computed again", unmarked=True)
    except StoreError as error:
        logger.info(str(error))
        return None


def read_saved(path: Path, format: str | None, *, way_out: str) -> Normalization:
    """What :meth:`Normalization.save` wrote, or the fitted ZCA that a run keeps, whatever its data.

    Args:
        format: that the file says it has.

    Raises:
        StoreError: damaged, foreign, or of another format.
    """
    return _unpacked(path, _FITTED if format == _FITTED else SAVED, {}, way_out=way_out)


def _unpacked(
    path: Path, format: str, expected: Mapping[str, str], *, way_out: str, unmarked: bool = False
) -> Normalization:
    """Whose description says what is expected, and whose values are those that were written."""
    with tensor_files.read_tensors(path, "normalization", format, way_out=way_out, unmarked=unmarked) as (
        tensors,
        sealed,
    ):
        said = tensor_files.unseal(sealed)
        if said.get("values") != _checksums(tensors) or any(said.get(key) != expected[key] for key in expected):
            raise ValueError("its values are not those that were written")
        return normalization_from_state(tensors)


def _checksums(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: zlib.crc32(tensor_files.tensor_bytes(state[name])) for name in sorted(state)}


def normalization_from_state(state: Mapping[str, Tensor]) -> Normalization:
    """The normalisation that `state()` described.

    Raises:
        StoreError: the tensors are not those of a known kind, or their shapes do not fit together.
    """
    keys = set(state)
    try:
        if keys == {"mean", "std"}:
            return MeanStd(state["mean"], state["std"])
        if keys == {"mean", "transform", "inverse", "eps"}:
            return ZCA(state["mean"], state["transform"], state["inverse"], float(state["eps"]))
        if keys == {"pixels"}:
            return Pixels()
    except (ValueError, RuntimeError) as error:  # InputError is a ValueError
        raise StoreError(f"the stored normalisation is damaged: {error}") from error
    raise StoreError(
        f"the stored normalisation has tensors {sorted(keys)}; expected mean and std (mean-std), mean, "
        "transform, inverse and eps (zca), or pixels (none yet)."
    )


def _check_batch(images: Tensor) -> None:
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(
            f"normalisation needs floating point images [N, C, H, W], got {images.dtype} {list(images.shape)}."
        )


def _stored(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float32).contiguous()
