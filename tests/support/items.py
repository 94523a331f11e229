"""A map-style data set of whatever it is given."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class Items(Dataset[Any]):
    def __init__(self, items: list[Any], classes: Any = None) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]
