"""torchvision's data sets, for whoever reads one of them."""

from __future__ import annotations

from typing import Any

from ..errors import DatasetError
from ..runtime.torchvision_import import import_torchvision


def torchvision_datasets() -> Any:
    """The module `torchvision.datasets`.

    Raises:
        DatasetError: torchvision is not installed or cannot be imported.
    """
    try:
        return import_torchvision("datasets")
    except ImportError as error:
        raise DatasetError(
            f"this data set is read by torchvision, and {error}, or pass the images as tensors or as imagefolder:PATH."
        ) from error
