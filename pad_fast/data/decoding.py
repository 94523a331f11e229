"""Encoded pictures, decoded by a pool of threads in the order they are asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from ..errors import DatasetError
from .arrays import stack_images
from .pictures import Oddities, picture_to_tensor
from .splits import Reading

# What the usual extensions stand for, most common first: PIL tries them in this order and no others, so a file named
# .png never reaches the plugins that run programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_FILES_PER_TASK = 64  # a task per file would spend more time on queues than on small images


def decode(
    count: int, read: Callable[[int], bytes], describe: Callable[[int], str], whole: str, reading: Reading
) -> Tensor:
    """Decode pictures as :func:`.pictures.picture_to_tensor` does, into one tensor `[N, C, H, W]`.

    Args:
        read: the bytes of a picture by its number below `count`; called from several threads.
        describe: where a picture is, for messages.
        whole: where all of them are.

    Raises:
        DatasetError: a picture cannot be decoded, or their sizes differ; the message names it.
    """
    from PIL import Image, UnidentifiedImageError

    oddities = Oddities()

    def one(index: int) -> Tensor:
        data = read(index)
        if not data:
            raise DatasetError(f"cannot decode image {describe(index)}: it is empty. Repair or remove the file.")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return picture_to_tensor(image, reading.resolution, oddities)
        except UnidentifiedImageError as error:
            raise DatasetError(
                f"cannot decode image {describe(index)}: it is none of {', '.join(_FORMATS)}. Repair or remove the "
                "file."
            ) from error
        except Exception as error:  # PIL's plugins raise almost anything for damaged files
            raise DatasetError(f"cannot decode image {describe(index)}: {error}. Repair or remove the file.") from error

    def several(chunk: range) -> list[Tensor]:
        return [one(index) for index in chunk]

    Image.init()  # load the format plugins once, not in every thread
    chunks = [range(start, min(start + _FILES_PER_TASK, count)) for start in range(0, count, _FILES_PER_TASK)]
    # More threads than cores: some wait for the disk. Decoding itself releases the interpreter lock.
    pool = ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1))
    try:
        decoded = (image for images in pool.map(several, chunks) for image in images)
        items = list(reading.progress.track(decoded, f"data: {whole}", total=count, unit="image"))
    finally:
        pool.shutdown(cancel_futures=True)
    oddities.say(count, whole)
    return stack_images(items, describe)
