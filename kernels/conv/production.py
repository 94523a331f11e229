"""The convolutions that real runs launch, for the compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..calls import Call, distinct
from .launches import (
    plan_convolution,
    plan_dual,
    plan_pack,
    plan_split_sum,
    plan_weight_gradient,
    plan_weight_gradient_sum,
)
from .layer import Layer

if TYPE_CHECKING:
    from ..aot import Production


def production() -> list[Production]:
    """Blocks 2 and 3 of the 32-pixel ConvNet (D3 W128) and block 2 of the 64-pixel one (D4), as real runs use them.

    Block 3 at batch 1000 is block 2's with other numbers, so it is left out.
    """
    found: list[Production] = []

    def add(name: str, layer: Layer, call: Call, types: str) -> None:
        """`types`: a letter per tensor, m for maps and sums, w for packed filters."""
        wide = "*fp64" if layer.dtype == torch.float64 else "*fp32"
        filters = "*bf16" if layer.precision == "bf16" else wide
        pointers = [filters if letter == "w" else wide for letter in types]
        hot = layer.kind in ("tf32", "bf16")
        found.append(call.production(name, *pointers, precision=layer.kind, hot=hot))

    def add_layer(name: str, layer: Layer) -> None:
        for pairs in (1, 2):
            call, splits = plan_convolution(layer, pairs=pairs)
            add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, call, "mmwmw")
            if splits > 1:
                add(name, layer, plan_split_sum(layer, splits, 1), "mm")
        call, splits = plan_dual(layer)
        add(name, layer, call, "mmmmww")
        if splits > 1:
            add(name, layer, plan_split_sum(layer, splits, 2), "mm")
        for pairs in (1, 2):
            call, splits = plan_weight_gradient(layer, pairs=pairs)
            add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, call, "mmmmm")
            add(name, layer, plan_weight_gradient_sum(layer, splits, 320010, 3968, False), "mm")

    for batch, block, size in ((10, 2, 16), (10, 3, 8), (100, 2, 16), (100, 3, 8), (1000, 2, 16)):
        add_layer(f"32 px, block {block}, batch {batch}", Layer(1, batch, size, size, 128, 128))
    add_layer("64 px, block 2, batch 100", Layer(1, 100, 32, 32, 128, 128))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "bf16"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee", torch.float64))
    layer = Layer(1, 100, 16, 16, 128, 128)
    call = plan_pack(2, 1, 128, 128, 320010, 3968, 147840, torch.float32, torch.float32)
    add("both layers of 32 px", layer, call, "wwm")
    return distinct(found)
