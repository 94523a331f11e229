"""A normalisation kept in a file: as we save it, as a distilled set carries it, or as other programs keep theirs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, StoreError
from ..runtime import files, tensor_files
from .distilled import FORMAT, load
from .formats import hub, npz
from .normalize import ZCA, MeanStd, Normalization, read_saved

_WHAT, _WAY_OUT = "normalization", "repeat what wrote it, or bring it back from a copy"
_SUFFIXES = (".safetensors", ".npz", ".pt")
# Our names, and those of the attributes of kornia's ZCAWhitening.
_NAMES = {
    "mean": ("mean", "mean_vector"),
    "std": ("std",),
    "transform": ("transform", "transform_matrix"),
    "inverse": ("inverse", "transform_inv"),
}
_EXPECTED = "mean and std, or mean and transform (ZCA), or kornia's mean_vector and transform_matrix"
# Means of pixels from 0 to 255 reach more, even of dark images; those of pixels from 0 to 1, with noise or not, do not.
_BRIGHT = 2.0
# Matrices of float32 programs: what rounding makes of symmetry and of the way there and back stays far below these.
_SYMMETRY, _ROUND_TRIP = 1e-3, 1e-2


def load_normalization(path: str | os.PathLike[str], *, shape: Sequence[int] | None = None) -> Normalization:
    """Read how images were normalised, for sets that do not say it: `load(PATH, whitening=load_normalization(FILE))`.

    Read are `.safetensors` of :meth:`pad_fast.data.Normalization.save` and the fitted ZCA in a run's cache; a distilled
    set that carries its whitening, of which that is taken; and `.npz` or `.pt` with arrays by name: `mean` and `std`,
    or a ZCA's `mean`, `transform` and, where they are known, `inverse` and `eps` (`mean_vector`, `transform_matrix`
    and `transform_inv` of kornia's ZCAWhitening). These are for pixels from 0 to 1; a ZCA is (x - mean) @ transform.

    Args:
        shape: `[C, H, W]` of the images, which a flat mean does not say; they were flattened in this order.

    Raises:
        StoreError: nothing there, damaged, no normalisation, or one of pixels from 0 to 255.
        InputError: shapes do not fit together, a std is not positive.

    Example:
        >>> from pad_fast.data import MeanStd
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_normalization(MeanStd(torch.tensor([0.5]), torch.tensor([0.25])).save(f"{folder}/a.safetensors"))
        MeanStd(mean=[0.5], std=[0.25])
    """
    if os.fspath(path).startswith(hub.PREFIX):
        return _of_set(path)
    path = Path(path)
    if not path.exists():
        raise StoreError(f"no normalization at {path}: there is no such file")
    if path.is_dir():
        return _of_set(path)
    if path.suffix == ".safetensors":
        with tensor_files.read_tensor_header(path, _WHAT, way_out=_WAY_OUT) as header:
            said = header.described.get("format")
        return _of_set(path) if said == FORMAT else read_saved(path, said, way_out=_WAY_OUT)
    if path.suffix in (".npz", ".pt"):
        values = npz.arrays(path, _WHAT) if path.suffix == ".npz" else _tensors(path)
        if npz.OURS in values:
            return _of_set(path)
        with files.reading(path, _WHAT):
            return _of_others(path, values, shape)
    raise StoreError(f"{path} is none of {', '.join(_SUFFIXES)}, nor the folder of a distilled set")


def _of_set(path: str | os.PathLike[str]) -> Normalization:
    made = load(path, lr=1.0)  # which is not asked for here
    if made.whitening is None or made.are_pixels:
        has = "holds pixels" if made.are_pixels else "carries no whitening"
        raise StoreError(f"{path} is a distilled set that {has}; name a set or file that says how it was normalised")
    return made.whitening


def _tensors(path: Path) -> Mapping[str, Any]:
    try:
        value = files.read_torch(path, _WHAT)
    except StoreError as error:
        raise StoreError(
            f"{error}; of kornia's ZCAWhitening save torch.save({{'mean_vector': zca.mean_vector, 'transform_matrix': "
            "zca.transform_matrix}, FILE)"
        ) from error
    if not isinstance(value, Mapping):
        raise StoreError(f"{path} holds a {type(value).__name__}; expected a dict of {_EXPECTED}")
    return value


def _of_others(path: Path, values: Mapping[str, Any], shape: Sequence[int] | None) -> Normalization:
    found: dict[str, Tensor] = {}
    for part, names in _NAMES.items():
        given = [name for name in names if name in values]
        if given:
            found[part] = _numbers(values[given[0]])
    if "inverse" in found and not found["inverse"].numel():
        del found["inverse"]  # kornia's, where nobody asked for it
    if "mean" not in found or ("std" in found) == ("transform" in found):
        raise StoreError(f"{path} holds {', '.join(map(str, values)) or 'nothing'}; expected {_EXPECTED}")
    if not all(bool(part.isfinite().all()) for part in found.values()):
        raise StoreError(f"{path} contains NaN or infinite values")
    if float(found["mean"].max()) > _BRIGHT:
        raise StoreError(
            f"means of {path} reach {float(found['mean'].max()):.4g}, and pixels here go from 0 to 1; divide mean and "
            "std by 255 where they are those of pixels from 0 to 255, or fit a ZCA to pixels from 0 to 1"
        )
    if "std" in found:
        return MeanStd(found["mean"].flatten(), found["std"].flatten())
    return _zca(path, found, float(values.get("eps", math.nan)), shape)


def _numbers(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().to(torch.float32)


def _zca(path: Path, found: Mapping[str, Tensor], eps: float, shape: Sequence[int] | None) -> ZCA:
    mean, transform = found["mean"], found["transform"]
    size = mean.numel()
    if transform.shape != (size, size):
        raise StoreError(
            f"{path} has a transform {list(transform.shape)} and a mean of {size} values; a ZCA has [D, D] and D"
        )
    if mean.dim() != 3:
        if shape is None:
            raise StoreError(
                f"the mean of {path} has {size} values in a row; pass shape=(C, H, W) of the images that it is for"
            )
        if math.prod(shape) != size:
            raise InputError(f"{path} whitens images of {size} values, and these are {list(shape)}")
        mean = mean.reshape(tuple(shape))
    # Whichever side programs multiply from: of a symmetric matrix it is the same.
    if float((transform - transform.T).abs().max()) > _SYMMETRY * float(transform.abs().max()):
        raise StoreError(f"the transform of {path} is not symmetric, so it is no ZCA, and its order is not known")
    wide = transform.double()
    inverse = found["inverse"] if "inverse" in found else torch.linalg.inv(wide).float()
    probe = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if inverse.shape != wide.shape or float((probe @ wide @ inverse.double() - probe).norm() / probe.norm()) > (
        _ROUND_TRIP
    ):
        raise StoreError(f"the inverse in {path} is not that of its transform; leave it out, it is computed then")
    return ZCA(mean, transform, inverse, eps)
