"""Images as PNG files, drawn with Pillow only: contact sheets with one row per class, and single images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
from ..data.arrays import to_bytes

_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_FAINT = (105, 110, 118)
_FRAME = (214, 96, 0)
_MARGIN = 20
_GAP = 4  # between the images of a row, and between rows
_ASPECT = 1.3  # width over height the blocks of rows are arranged to come close to
_TEXT, _TITLE = 17, 22
_LABEL_LIMIT = 190  # pixels a class name may take before it is cut


def image_grid(
    pixels: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    cell: int | None = None,
    max_columns: int = 10,
    max_classes: int = 100,
    title: str | None = None,
    stretch: bool = False,
    moved: Tensor | None = None,
) -> Image.Image:
    """Draw images in rows by class, each row labelled with its class name.

    Rows run down a block and blocks stand side by side, so that one image for each of 100 classes still makes
    a page and not a strip. A row shows its first `max_columns` images in the order given and says how many
    more there are; so does the sheet when there are more than `max_classes` classes. Classes without images
    have no row. The same input gives the same pixels.

    Args:
        pixels: images [N, C, H, W], C 1 (grey), 3 (RGB) or any other number, whose mean is drawn in grey;
            floats with 1.0 for full brightness, clamped to
            [0, 1], or uint8 with 255.
        labels: class of each image, int64 [N].
        class_names: name of each class; labels index it.
        cell: smallest side of a drawn image in pixels; smaller images are enlarged by a whole factor, without
            smoothing, larger ones are drawn as they are. Default: 64, or 128 for at most 20 images.
        max_columns: images drawn per class.
        max_classes: classes drawn.
        title: a line above the grid.
        stretch: map each image's 1st to 99th percentile to [0, 1], for images that are not in [0, 1]
            (whitened ones, say); the clamp of the default keeps images comparable.
        moved: whether each image's soft label is largest at another class than its label's, bool [N]: such an image has
            a frame, and a line says what frames mean.

    Returns:
        An RGB `PIL.Image.Image` on white.

    Raises:
        InputError: shapes or dtypes that do not fit together, no images, values that are not finite, or a
            label without a name.

    Example:
        >>> image_grid(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]), ["zero", "one"]).mode
        'RGB'
    """
    if cell is None:
        cell = 128 if len(labels) <= 20 else 64
    _check(pixels, labels, class_names, cell=cell, max_columns=max_columns, max_classes=max_classes)
    from PIL import Image, ImageDraw

    rows = _rows(labels, class_names, max_columns, max_classes)
    classes_left = int(labels.unique().numel()) - len(rows)
    # Only what is drawn is enlarged: a set may hold far more images than its sheet shows.
    shown = [index for row in rows for index in row.shown]
    images = dict(zip(shown, _enlarged(gray_unless_rgb(to_bytes(pixels[shown], stretch=stretch)), cell), strict=True))
    layout = _arrange(rows, *images[shown[0]].shape[:2])
    framed = set() if moved is None else {index for index in shown if moved[index]}
    remarks = [f"+{classes_left} more classes"] if classes_left else []
    if framed:
        remarks.append(f"framed ({len(framed)}): the soft label has moved to another class")
    sheet_notes = "; ".join(remarks)
    top = _MARGIN + (_TITLE + 16 if title else 0)
    height = top + layout.height + (_TEXT + 14 if sheet_notes else 0) + _MARGIN
    texts = _measure(title or "", _TITLE), _measure(sheet_notes if framed else "", _TEXT)
    width = max(layout.width, *map(math.ceil, texts)) + 2 * _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN + _TITLE // 2), title, fill=_INK, font=_font(_TITLE), anchor="lm")
    for number, row in enumerate(rows):
        left = _MARGIN + (number // layout.rows_per_block) * (layout.block_width + layout.block_gap)
        y = top + (number % layout.rows_per_block) * (layout.cell_height + _GAP)
        _draw_row(sheet, draw, row, images, framed, layout, left, y)
    if sheet_notes:
        y = top + layout.height + 14 + _TEXT // 2
        draw.text((_MARGIN, y), sheet_notes, fill=_FAINT, font=_font(_TEXT), anchor="lm")
    return sheet


def single_png(image: Tensor) -> bytes:
    """One image `[C, H, W]` uint8, C as for :func:`image_grid`, as a PNG file of its own size."""
    return png_bytes(_picture(gray_unless_rgb(image).permute(1, 2, 0)))


def gray_unless_rgb(images: Tensor) -> Tensor:
    """Bytes `[..., C, H, W]` as they can be drawn: grey and RGB as they are, else the mean over channels."""
    if images.shape[-3] in (1, 3):
        return images
    return images.float().mean(-3, keepdim=True).round().to(torch.uint8)


def _picture(image: Tensor) -> Image.Image:
    """Bytes `[h, w, C]`, C 1 or 3."""
    from PIL import Image

    array = image.contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def png_bytes(image: Image.Image) -> bytes:
    """The image as a PNG file, without metadata or dates: equal images give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class _Row:
    label: str
    shown: list[int]  # indices into the images
    note: str  # what is not shown, or ""


@dataclass(frozen=True)
class _Layout:
    rows_per_block: int
    label_width: int
    block_width: int
    block_gap: int
    cell_height: int
    cell_width: int
    width: int
    height: int


def _check(pixels: Tensor, labels: Tensor, class_names: Sequence[str], **limits: int) -> None:
    if pixels.dim() != 4 or 0 in pixels.shape:
        raise InputError(f"image_grid draws images [N, C, H, W], got shape {list(pixels.shape)}")
    if not pixels.is_floating_point() and pixels.dtype != torch.uint8:
        raise InputError(f"image_grid draws float or uint8 images, got {pixels.dtype}")
    if labels.shape != pixels.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"image_grid needs one integer label per image: {pixels.shape[0]} images, labels "
            f"{labels.dtype} {list(labels.shape)}"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= len(class_names):
        wrong = lowest if lowest < 0 else highest
        raise InputError(f"label {wrong} has no name: {len(class_names)} class names were given")
    if not torch.isfinite(pixels).all():
        raise InputError("image_grid got pixels that are NaN or infinite; the images have diverged")
    for name, value in limits.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _rows(labels: Tensor, class_names: Sequence[str], max_columns: int, max_classes: int) -> list[_Row]:
    rows = []
    for value in labels.unique().tolist()[:max_classes]:
        members = (labels == value).nonzero().flatten().tolist()
        left = len(members) - max_columns
        note = f"+{left} more" if left > 0 else ""
        rows.append(_Row(_shorten(str(class_names[value])), members[:max_columns], note))
    return rows


def _enlarged(images: Tensor, cell: int) -> Tensor:
    """Bytes `[N, C, H, W]` as `[N, h, w, C]`, enlarged by a whole factor until the longer side fills the cell."""
    factor = max(1, math.ceil(cell / max(images.shape[2:])))
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1).contiguous()


def _arrange(rows: list[_Row], cell_height: int, cell_width: int) -> _Layout:
    """Choose how many rows stand in one block so that the sheet's shape comes closest to a page's."""
    label_width = math.ceil(max(_measure(row.label, _TEXT) for row in rows)) + 10
    columns = max(len(row.shown) for row in rows)
    images_width = columns * (cell_width + _GAP) - _GAP
    notes = max(_measure(row.note, _TEXT) for row in rows)
    block_width = label_width + images_width + (math.ceil(notes) + 10 if notes else 0)
    block_gap = 26

    def size(blocks: int) -> tuple[int, int]:
        per_block = math.ceil(len(rows) / blocks)
        used = math.ceil(len(rows) / per_block)
        width = used * (block_width + block_gap) - block_gap
        return width, per_block * (cell_height + _GAP) - _GAP

    def strangeness(blocks: int) -> tuple[float, float]:
        width, height = size(blocks)
        # Among equals prefer blocks of one length: 10 rows as 5 + 5, not as 4 + 4 + 2.
        ragged = (-len(rows)) % math.ceil(len(rows) / blocks)
        return abs(math.log(width / height / _ASPECT)) + 0.7 * bool(ragged), blocks

    best = min(range(1, len(rows) + 1), key=strangeness)
    width, height = size(best)
    return _Layout(
        rows_per_block=math.ceil(len(rows) / best),
        label_width=label_width,
        block_width=block_width,
        block_gap=block_gap,
        cell_height=cell_height,
        cell_width=cell_width,
        width=width,
        height=height,
    )


def _draw_row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: _Row,
    images: dict[int, Tensor],
    framed: set[int],
    layout: _Layout,
    x: int,
    y: int,
) -> None:
    middle = y + layout.cell_height // 2
    draw.text((x + layout.label_width - 10, middle), row.label, fill=_INK, font=_font(_TEXT), anchor="rm")
    x += layout.label_width
    for index in row.shown:
        if index in framed:  # in the gap, so that no pixel of the image is hidden
            corners = (x - _GAP + 1, y - _GAP + 1, x + layout.cell_width + _GAP - 2, y + layout.cell_height + _GAP - 2)
            draw.rectangle(corners, fill=_FRAME)
        sheet.paste(_picture(images[index]), (x, y))
        x += layout.cell_width + _GAP
    if row.note:
        draw.text((x + 6, middle), row.note, fill=_FAINT, font=_font(_TEXT), anchor="lm")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _measure(text: str, size: int) -> float:
    return float(_font(size).getlength(text)) if text else 0.0


def _shorten(name: str) -> str:
    """One line, cut to the label column with an ellipsis."""
    name = " ".join(name.split())
    if _measure(name, _TEXT) <= _LABEL_LIMIT:
        return name
    name = name[:_LABEL_LIMIT]  # no letter is narrower than a pixel, and measuring takes as long as the name is
    while name and _measure(name + "...", _TEXT) > _LABEL_LIMIT:
        name = name[:-1]
    return name.rstrip() + "..."
