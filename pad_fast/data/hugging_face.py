"""Hugging Face data sets (the optional package `datasets`): by name, from disk, as objects."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DatasetError
from .arrays import image_from, stack_images
from .decoding import decode
from .pictures import Oddities
from .splits import Reading, Splits

PREFIX = "hf:"
PARQUET = ".parquet"

logger = logging.getLogger("pad_fast")

_VALIDATION = ("validation", "valid", "val", "dev")
_OPTIONS = ("image", "label", "config")
_NEEDED = {
    "image": "pictures or arrays; of files or bytes make pictures with dataset.cast_column(COLUMN, datasets.Image())",
    "label": "a ClassLabel, whole numbers or strings",
}
# Which of several columns of a kind is meant.
_USUAL = {"image": ("image", "img"), "label": ("label", "labels", "target", "class")}


def is_object(source: object) -> bool:
    """Whether it is a Dataset or DatasetDict, or a pair of data sets (train, test); `datasets` is not imported."""
    if "datasets" not in sys.modules:
        return False
    parts = source if isinstance(source, tuple | list) and len(source) == 2 else [source]
    return all(
        hasattr(part, "column_names")
        and any(base.__module__.partition(".")[0] == "datasets" for base in type(part).__mro__)
        for part in parts
    )


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def from_name(name: str, reading: Reading) -> Splits:
    """`hf:NAME`: a data set of the hub (downloaded if that is allowed), a folder of `save_to_disk`, or parquet files.

    `,image=COLUMN`, `,label=COLUMN` and `,config=NAME` behind it choose where there are several.

    Raises:
        DatasetError: `datasets` is not installed, nothing is found, or no column of images or labels.
    """
    place = name[len(PREFIX) :]
    words: list[str] = []
    if not Path(place).expanduser().exists():
        place, *words = place.split(",")
    options = dict(word.partition("=")[::2] for word in words)
    unknown = [key for key in options if key not in _OPTIONS]
    if unknown or not place:
        raise DatasetError(
            f"{name} is not understood; write {PREFIX}NAME or {PREFIX}PATH, and behind it, where there are several, "
            f"{' and '.join(f',{key}=...' for key in _OPTIONS)}."
        )
    return from_object(
        _opened(place, options.pop("config", None), reading), reading, name=f"{PREFIX}{place}", **options
    )


def from_object(
    source: Any, reading: Reading, *, name: str = "huggingface", image: str | None = None, label: str | None = None
) -> Splits:
    """Images and labels of a Dataset, a DatasetDict or a pair (train, test).

    Args:
        image, label: columns; found by their features when None.

    Raises:
        DatasetError: a stream, no split to train on, or no column of images or labels.
    """
    splits = _splits(source, name)
    train = splits["train"]
    image = image or _image_column(train, name)
    label = label or _label_column(train, image, name)
    tested_on = "test" if isinstance(source, tuple | list) else _tested_on(splits, label, name)
    test = splits.get(tested_on)
    parts = (train, test) if test is not None else (train,)
    for part in parts:
        absent = [column for column in (image, label) if column not in part.features]
        if absent:
            raise DatasetError(f"{name} has no column {absent[0]!r}; it has {', '.join(part.features)}.")
    names, *others = (getattr(_nested(part.features[label])[1], "names", None) for part in parts)
    if others and others[0] != names:
        raise DatasetError(
            f"the training and the test split of {name} have different classes in {label!r}: one label would mean two "
            "of them. Both need the same ClassLabel feature."
        )
    tested = f"tests on {len(test)} ({tested_on})" if test is not None else "sets a fixed fifth of every class aside"
    logger.warning(f"{name}: images from {image!r}, labels from {label!r}; trains on {len(train)} images, {tested}")
    return Splits(
        name,
        _images(train, image, f"{name} (train)", reading),
        _labels(train, label),
        _images(test, image, f"{name} ({tested_on})", reading) if test is not None else None,
        _labels(test, label) if test is not None else None,
        tuple(names) if names is not None else None,
    )


# -- opening -------------------------------------------------------------------------------------------------------


def _opened(place: str, config: str | None, reading: Reading) -> Any:
    datasets = _datasets()
    path = Path(place).expanduser()
    with _as_allowed(datasets, reading):
        try:
            if is_saved(path):
                return datasets.load_from_disk(str(path))
            if path.suffix.lower() == PARQUET and path.is_file():
                return datasets.load_dataset("parquet", data_files=str(path))
            if path.is_dir() and not any(path.rglob(f"*{PARQUET}")):
                raise DatasetError(
                    f"{path.absolute()} holds neither what save_to_disk writes nor parquet files; pictures in class "
                    f"folders are read by imagefolder:{place}."
                )
            return datasets.load_dataset(str(path) if path.is_dir() else place, config)
        except DatasetError:
            raise
        except Exception as error:  # what datasets, its hub, pyarrow and the network raise, by version
            raise DatasetError(
                f"{PREFIX}{place} cannot be read: {str(error).strip().splitlines()[0] if str(error) else error!r}. "
                "Name a folder that save_to_disk wrote or parquet files, a data set that `datasets` has downloaded "
                "before, or let it be fetched with download=True (--download)."
            ) from error


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise DatasetError(
            f"{PREFIX}NAME is read by the package datasets, which cannot be imported ({error}): pip install datasets, "
            "or give the images as imagefolder:PATH or FILE.npz."
        ) from error


@contextmanager
def _as_allowed(datasets: Any, reading: Reading) -> Iterator[None]:
    """The network only where downloads are allowed, and bars only where progress is shown."""
    hub = importlib.import_module("huggingface_hub.constants")
    switches = () if reading.download else ((datasets.config, "HF_HUB_OFFLINE"), (hub, "HF_HUB_OFFLINE"))
    before = [(place, name, getattr(place, name)) for place, name in switches]
    bars = datasets.utils.logging.is_progress_bar_enabled()
    try:
        for place, name in switches:
            setattr(place, name, True)
        if reading.progress.quiet:
            datasets.disable_progress_bars()
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        if bars:
            datasets.enable_progress_bars()


# -- splits and columns --------------------------------------------------------------------------------------------


def _splits(source: Any, name: str) -> dict[str, Any]:
    """Data sets by the names of their splits, one of them "train"."""
    if isinstance(source, tuple | list):
        splits = dict(zip(("train", "test"), source, strict=True))
    elif isinstance(source, Mapping):
        splits = dict(source)
    else:
        splits = {"train": source}
    for part in splits.values():
        if not hasattr(part, "__len__") or not hasattr(part, "select_columns"):
            raise DatasetError(
                f"{name} is a stream ({type(part).__name__}), whose images are not all there; load it without "
                "streaming=True."
            )
    if "train" in splits:
        return splits
    if len(splits) == 1:
        return {"train": next(iter(splits.values()))}
    raise DatasetError(
        f"{name} has no split 'train', but {', '.join(splits)}; give the two to use as a pair (train, test)."
    )


def _tested_on(splits: Mapping[str, Any], label: str, name: str) -> str:
    """The split to test on: "test", or else the validation images; "" where neither has labels."""
    chosen = ""
    for split in ("test", *_VALIDATION):
        if split not in splits:
            continue
        hidden = _unlabelled(splits[split], label)
        if chosen or hidden:
            why = " because they have no labels" if hidden else ""
            logger.warning(f"the {len(splits[split])} images of {split!r} of {name} are not used{why}")
        else:
            chosen = split
    return chosen


def _unlabelled(part: Any, label: str) -> bool:
    """Whether the labels are held back, as those of competitions' test splits on the hub."""
    return label not in part.features or all(value is None or value == -1 for value in _labels(part, label))


def _image_column(part: Any, name: str) -> str:
    datasets = _datasets()

    def shows(feature: Any) -> bool:
        if _is_encoded(feature) or isinstance(feature, datasets.Array2D | datasets.Array3D):
            return True
        depth, leaf = _nested(feature)
        return depth in (2, 3) and _is_number(leaf)

    return _chosen("image", [column for column, feature in part.features.items() if shows(feature)], part, name)


def _label_column(part: Any, image: str, name: str) -> str:
    """ClassLabels before plain numbers and names, those before rows of numbers."""
    datasets = _datasets()
    found: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for column, feature in part.features.items():
        depth, leaf = _nested(feature)
        if column == image or depth > 1:
            continue
        if depth == 0 and isinstance(leaf, datasets.ClassLabel):
            found[0].append(column)
        elif depth == 0 and isinstance(leaf, datasets.Value) and re.search("int|string", leaf.dtype):
            found[1].append(column)
        elif _is_number(leaf):
            found[2].append(column)
    return _chosen("label", next((columns for columns in found.values() if columns), []), part, name)


def _chosen(kind: str, columns: Sequence[str], part: Any, name: str) -> str:
    if len(columns) == 1:
        return columns[0]
    usual = next((column for column in _USUAL[kind] if column in columns), None)
    if usual is not None:
        others = ", ".join(repr(column) for column in columns if column != usual)
        logger.warning(f"{name} has several columns of {kind}s: {usual!r} is used, {others} not")
        return usual
    found = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in part.features.items())
    if not columns:
        raise DatasetError(f"{name} has no column of {kind}s among {found}; it needs {_NEEDED[kind]}.")
    raise DatasetError(
        f"{name} has several columns of {kind}s among {found}. Name it: "
        f"{PREFIX}NAME,{kind}=COLUMN, or of an object dataset.rename_column(COLUMN, {kind!r})."
    )


def _is_encoded(feature: Any) -> bool:
    """Pictures as bytes, also where what else than `datasets` wrote the file does not call them images."""
    return (
        isinstance(feature, _datasets().Image)
        or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})
        or getattr(feature, "dtype", None) == "binary"
    )


def _is_number(feature: Any) -> bool:
    return re.search("int|float", str(getattr(feature, "dtype", ""))) is not None


def _nested(feature: Any) -> tuple[int, Any]:
    """How many lists are around a feature, and the feature inside."""
    depth = 0
    while not hasattr(feature, "names") and (isinstance(feature, list) or hasattr(feature, "feature")):
        feature = feature[0] if isinstance(feature, list) else feature.feature
        depth += 1
    return depth, feature


# -- contents ------------------------------------------------------------------------------------------------------


def _labels(part: Any, column: str) -> list[Any]:
    return list(part.with_format(None)[column])


def _images(part: Any, column: str, whole: str, reading: Reading) -> Tensor:
    if len(part) == 0:
        raise DatasetError(f"{whole} is empty: no images.")
    if part.format["type"] == "custom":
        logger.warning(f"the transform of {whole} is left out: images are read as they are stored")
    datasets, feature = _datasets(), part.features[column]

    def describe(index: int) -> str:
        return f"row {index} of {whole}"

    stored = part.select_columns([column])
    if _is_encoded(feature):
        encoded = stored.with_format(None).cast_column(column, datasets.Image(decode=False))
        images = decode(
            len(part), lambda index: _bytes(encoded[index][column], describe(index)), describe, whole, reading
        )
        return _in_mode(images, getattr(feature, "mode", None), whole)
    rows, dtype = stored.with_format("numpy"), np.dtype(_nested(feature)[1].dtype)  # the format would widen uint8
    indices = reading.progress.track(range(len(part)), f"data: {whole}", total=len(part), unit="image")
    oddities = Oddities()
    return stack_images(
        [
            image_from(np.asarray(rows[index][column], dtype), describe(index), reading.resolution, oddities)
            for index in indices
        ],
        describe,
    )


def _bytes(value: Mapping[str, Any] | None, what: str) -> bytes:
    if value is None:
        raise DatasetError(f"{what} is missing; leave such rows out with dataset.filter().")
    if value["bytes"] is not None:
        return value["bytes"]
    try:
        return Path(value["path"]).read_bytes()
    except OSError as error:
        raise DatasetError(
            f"cannot read {what}, which is kept in {value['path']}: {error.strerror or error}. Load the data set where "
            "its files are, and save it with save_to_disk, which takes them along."
        ) from error


def _in_mode(images: Tensor, mode: str | None, whole: str) -> Tensor:
    """Images as the feature's own mode wants them."""
    if mode == "RGB":
        return images.expand(-1, 3, -1, -1)
    if mode is None or mode == "L" and images.shape[1] == 1:
        return images
    raise DatasetError(
        f"images of {whole} are converted to mode {mode} by their feature; read them as they are stored, with "
        "dataset.cast_column(COLUMN, datasets.Image())."
    )
