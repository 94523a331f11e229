"""A folder that Hugging Face's `datasets.load_dataset` opens: a parquet table and a card.

The table holds 8-bit pictures, for looking at and for whoever wants pixels, and the images that networks are trained on
(whitened), nothing lost. The set itself lies beside it in our own file, which :func:`pad_fast.load` reads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import ConfigError
from ...runtime import files
from . import pngs

_TABLE = "data/train-00000-of-00001.parquet"

_CARD = """\
---
task_categories:
- image-classification
tags:
- dataset-distillation
configs:
- config_name: default
  data_files:
  - split: train
    path: {table}
---

# Distilled data set

{count} images {shape} for {classes} classes, made by dataset distillation with pad_fast. Networks are trained on
`normalized` with the learning rate {lr!r}.

| column | what it is |
|---|---|
{columns}

`distilled.safetensors` holds the same set with its whitening and settings; `pad_fast.load(FOLDER)` reads it.
"""


def write(
    folder: Path,
    images: Tensor,
    pixels: Tensor | None,
    labels: Tensor,
    logits: Tensor | None,
    lr: float,
    class_names: Sequence[str],
) -> None:
    """Write the table and the card into a folder.

    Args:
        images: float32 `[N, C, H, W]` as networks are trained on them.
        pixels: the same with whitening undone, gray or RGB; None leaves the pictures out.

    Raises:
        ConfigError: the package pyarrow is missing.
    """
    arrow, parquet = _packages()

    def lists(depth: int) -> dict[str, Any]:
        return {"feature": lists(depth - 1), "_type": "Sequence"} if depth else {"dtype": "float32", "_type": "Value"}

    columns: dict[str, tuple[Any, Any, str]] = {}  # values, datasets' feature, sentence
    if pixels is not None:
        pictures = [{"bytes": each, "path": None} for each in pngs.png_files(pixels, folder)]
        kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        columns["image"] = (
            arrow.array(pictures, kind),
            {"_type": "Image"},
            "PNG: whitening undone, clamped to 0..255 and rounded, so it is not exact",
        )
    columns["label"] = (
        arrow.array(labels.tolist(), arrow.int64()),
        {"names": list(class_names), "_type": "ClassLabel"},
        "the class that the image was made for",
    )
    if logits is not None:
        columns["soft_label"] = (
            _nested(arrow, logits.softmax(-1)),
            lists(1),
            "target probabilities of the classes",
        )
    columns["normalized"] = (
        _nested(arrow, images),
        lists(3),
        "the image that networks are trained on, float32 [C, H, W]",
    )
    features = {name: feature for name, (_, feature, _) in columns.items()}
    table = arrow.table({name: values for name, (values, _, _) in columns.items()})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    files.write_bytes(folder / _TABLE, buffer.getvalue())
    card = _CARD.format(
        table=_TABLE,
        count=len(images),
        shape="x".join(map(str, images.shape[1:])),
        classes=len(class_names),
        lr=lr,
        columns="\n".join(f"| `{name}` | {said} |" for name, (_, _, said) in columns.items()),
    )
    files.write_text(folder / "README.md", card)


def _nested(arrow: Any, values: Tensor) -> Any:
    """A column of lists of lists; without a Python object for every number."""
    column = arrow.array(values.detach().cpu().contiguous().view(-1).numpy())
    for size in reversed(values.shape[1:]):
        ends = np.arange(0, len(column) + 1, size, dtype=np.int32)
        column = arrow.ListArray.from_arrays(arrow.array(ends), column)
    return column


def _packages() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"parquet needs the package pyarrow, which cannot be imported ({error}): pip install pyarrow, or use npz"
        ) from error
    return pyarrow, parquet
