"""Labels in the forms people have them (ids with gaps, names, one-hot rows, columns) as class ids 0, 1, 2, ..."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DatasetError
from .labels import one_hot_rows
from .natural_order import natural_key

logger = logging.getLogger("pad_fast")

RENUMBER = "Others are renumbered by torch.unique(labels, return_inverse=True)[1], over all splits together."

_SHOWN = 5  # classes that a message names


def class_ids(
    parts: Sequence[Any], names: Sequence[str] | None, what: Sequence[str], source: str
) -> tuple[list[Tensor], tuple[str, ...]]:
    """Ids without gaps for the labels of all splits of one data set, and the names of the classes that occur.

    Ids keep their order and names sort as people count them, unless `names` says another order. A class without any
    image is left out. Whatever is not plainly ids is said once.

    Args:
        parts: the labels of each split: ids or names `[N]` or `[N, 1]`, or one-hot rows `[N, classes]`; tensors, arrays
            or lists.
        names: the class names that the source knows: of id 0, 1, 2, ..., or of the ids that occur, in their order.
        what: how messages call one label of each part, with a place for its number: "label {} of the test set".
        source: the data set, for messages.

    Returns:
        int64 `[N]` for each part, and one name per class.

    Raises:
        DatasetError: several classes for an image, labels that are no classes, or names that do not fit.

    Example:
        >>> class_ids([[0, 2, 7, 2]], None, ["label {}"], "mine")
        ([tensor([0, 1, 2, 1])], ('0', '2', '7'))
        >>> class_ids([["dog", "cat"], ["cat"]], None, ["label {}", "test label {}"], "mine")
        ([tensor([1, 0]), tensor([0])], ('cat', 'dog'))
    """
    notes: list[str] = []
    read = [_column(part, each, notes) for part, each in zip(parts, what, strict=True)]
    for note in dict.fromkeys(notes):
        logger.warning(f"{note} of {source} are taken for class ids")
    if any(isinstance(each, list) for each in read):
        return _named(read, names, what, source)
    return _numbered([each for each in read if isinstance(each, Tensor)], names, source)


def _named(
    parts: Sequence[Tensor | list[str]], known: Sequence[str] | None, what: Sequence[str], source: str
) -> tuple[list[Tensor], tuple[str, ...]]:
    for each, said in zip(parts, what, strict=True):
        if isinstance(each, Tensor) and len(each):
            raise DatasetError(
                f"{said.format(0)} is {int(each[0])}, but the labels of another part are names; give names in both, or "
                "integer class ids in both."
            )
    words = [list(each) if isinstance(each, list) else [] for each in parts]
    present = {word for each in words for word in each}
    if known is None:
        ordered = sorted(present, key=natural_key)
        logger.warning(f"labels of {source} are names: class ids follow their sorted order, {_few(ordered)}")
    else:
        foreign = sorted(present - set(known), key=natural_key)
        if foreign:
            raise DatasetError(
                f"labels of {source} name classes that class_names does not have: {_few(foreign)}; add them there, or "
                "leave class_names out."
            )
        ordered = [name for name in known if name in present]
        _say_left_out(len(known) - len(ordered), len(known), source)
    place = {name: index for index, name in enumerate(ordered)}
    return [torch.tensor([place[word] for word in each], dtype=torch.int64) for each in words], tuple(ordered)


def _numbered(
    parts: Sequence[Tensor], names: Sequence[str] | None, source: str
) -> tuple[list[Tensor], tuple[str, ...]]:
    present, places = torch.unique(torch.cat(list(parts)), return_inverse=True)
    ids = present.tolist()
    if ids and ids[0] < 0:
        ignored = " -100 marks labels to be ignored elsewhere: leave those images out." if ids[0] == -100 else ""
        raise DatasetError(
            f"labels run from {ids[0]} to {ids[-1]}; class ids are 0 and above, and negative ones often mark images "
            f"without a class.{ignored} {RENUMBER}"
        )
    gaps = ids != list(range(len(ids)))
    if names is None:
        found = tuple(str(each) for each in ids)
        if gaps:
            logger.warning(
                f"class ids of {source} have gaps: {_few(found)} become 0 to {len(ids) - 1} and stay the classes' names"
            )
    elif not ids or ids[-1] < len(names):
        found = tuple(str(names[each]) for each in ids)
        _say_left_out(len(names) - len(ids), len(names), source)
    elif len(ids) == len(names):
        found = tuple(str(name) for name in names)
        logger.warning(f"class ids of {source} have gaps: {_few([str(each) for each in ids])} are {_few(found)}")
    else:
        raise DatasetError(
            f"labels run from {ids[0]} to {ids[-1]}; with {len(names)} classes they are 0 to {len(names) - 1}."
        )
    return list(places.split([len(part) for part in parts])), found


def _say_left_out(missing: int, total: int, source: str) -> None:
    if missing:
        logger.warning(f"{missing} of the {total} classes of {source} have no image and are left out")


def _column(value: Any, what: str, notes: list[str]) -> Tensor | list[str]:
    """Labels of one part as int64 ids `[N]` on the CPU, or as names."""
    if isinstance(value, Tensor):
        return _ids(value.detach().cpu(), what, notes)
    if isinstance(value, np.ndarray) and value.dtype.kind not in "USO":
        return _ids(torch.from_numpy(np.ascontiguousarray(value).astype(_wide(value.dtype))), what, notes)
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 1:
        value = value[:, 0]
    try:
        items = list(value)
    except TypeError as error:
        raise DatasetError(
            f"labels must be a tensor, an array or a list with one class per image; got {type(value).__name__}."
        ) from error
    if items and all(isinstance(item, str | bytes) for item in items):
        return [item.decode(errors="replace") if isinstance(item, bytes) else str(item) for item in items]
    if any(isinstance(item, str) for item in items):
        index = next(index for index, item in enumerate(items) if not isinstance(item, str | bytes))
        raise DatasetError(f"{what.format(index)} is {items[index]!r}, and others are names; give every image one.")
    if items and all(type(item) is int for item in items):
        return torch.tensor(items)
    rows = [_row(item, what.format(index)) for index, item in enumerate(items)]
    if len({row.shape for row in rows}) > 1:
        index = next(index for index, row in enumerate(rows) if row.shape != rows[0].shape)
        raise DatasetError(
            f"{what.format(index)} has {rows[index].numel()} numbers, others {rows[0].numel()}: several classes for "
            "one image are not supported; give each image one integer class id."
        )
    return _ids(torch.stack(rows), what, notes) if rows else torch.zeros(0, dtype=torch.int64)


def _row(item: Any, what: str) -> Tensor:
    """One label as a tensor of no or one axis, of a dtype that all labels can share."""
    try:
        array = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
        if array.dtype.kind not in "iuf":
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:
        raise DatasetError(
            f"{what} must be an integer class id; got {str(item)[:80]}. A class's name or a one-hot row will do too."
        ) from error
    return torch.from_numpy(np.array(array.reshape(()) if array.size == 1 else array, _wide(array.dtype)))


def _wide(dtype: np.dtype[Any]) -> Any:
    return {"i": np.int64, "u": np.int64, "f": np.float64}.get(dtype.kind, dtype)


def _ids(values: Tensor, what: str, notes: list[str]) -> Tensor:
    if values.dim() == 2 and values.shape[1] == 1:  # a column, as MedMNIST has it
        values = values[:, 0]
    if values.dim() == 2 and len(values):
        return _of_rows(values, what, notes)
    if values.dim() != 1:
        raise DatasetError(f"labels must have shape [N] with one class id per image; got {list(values.shape)}.")
    if values.is_complex() or values.dtype == torch.bool:
        raise DatasetError(
            f"{what.format(0)} must be an integer class id, got {values.dtype}; convert it, for example labels.long()."
        )
    if not values.is_floating_point():
        return values.long()
    broken = (values != values.round()) | ~values.isfinite()
    if bool(broken.any()):
        index = int(broken.nonzero()[0])
        raise DatasetError(
            f"{what.format(index)} must be an integer class id; got {float(values[index]):g}. Numbers to be predicted "
            "are no classes: sort them into classes first, for example torch.bucketize(labels, edges)."
        )
    if len(values):
        notes.append("whole numbers in floating point")
    return values.long()


def _of_rows(values: Tensor, what: str, notes: list[str]) -> Tensor:
    """The class of one-hot rows `[N, classes]`."""
    hot = one_hot_rows(values)
    if bool(hot.all()):
        notes.append(f"one-hot rows of {values.shape[1]} numbers")
        return values.to(torch.uint8).argmax(1)
    index = int((~hot).nonzero()[0])
    if bool(((values == 0) | (values == 1)).all()):
        raise DatasetError(
            f"{what.format(index)} has {int(values[index].sum())} classes at once: where images may have several "
            "(multi-label), there is no class to distil images of. Keep the images of one class each, those of "
            "labels.sum(1) == 1."
        )
    raise DatasetError(
        f"labels must have shape [N] with one class id per image, or one-hot rows; got {list(values.shape)} with "
        f"{values[index].tolist()} in {what.format(index)}. Of soft labels take the likeliest class, labels.argmax(1)."
    )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
