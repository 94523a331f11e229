"""Files of distilled sets that other programs write or read, one format a file.

Readers give :class:`Contents`, what a file says and no more; :mod:`pad_fast.data.distilled` imports this, and makes a
set of it. Writers take tensors. Published programs' three files are :mod:`pad_fast.data.trio`'s.
"""

from __future__ import annotations

from pathlib import Path

from . import npz, pngs, tensors
from .contents import IMAGES_ARE, Contents, as_images

LOOKED_FOR = f"{npz.NAME}, images.npy, images.pt, or a folder of images for each class"
"""What else a folder may hold, in a message."""


def read(path: Path) -> Contents | None:
    """What a file or folder of another program says; None where it is none of these formats."""
    if path.is_dir():
        inside = [path / name for name in (npz.NAME, "images.npy", "images.pt")]
        path = next((file for file in inside if file.exists()), path)
    if path.is_dir():
        return pngs.read(path) if pngs.is_set(path) else None
    if not path.is_file():
        return None
    if path.suffix == ".npz":
        return npz.read(path)
    if path.suffix in (".pt", ".npy"):
        return tensors.read(path)
    return None


__all__ = ["IMAGES_ARE", "LOOKED_FOR", "Contents", "as_images", "read"]
