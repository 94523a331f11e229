"""The convolutions that real runs launch, for the compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..calls import Call, distinct
from ..launch import TARGETS
from ..published import EVERY, NEWEST, WIDTH
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
    """Blocks 2 and 3 of the 32-pixel ConvNet (D3 W128) and block 2 of the 64-pixel one (D4), and published sizes."""
    found: list[Production] = []

    def add(name: str, layer: Layer, call: Call, types: str, targets: tuple[int, ...] | None) -> None:
        """`types`: a letter per tensor, m for maps and sums, w for packed filters."""
        wide = "*fp64" if layer.dtype == torch.float64 else "*fp32"
        filters = "*bf16" if layer.precision == "bf16" else wide
        pointers = [filters if letter == "w" else wide for letter in types]
        hot = layer.kind in ("tf32", "bf16")
        found.append(call.production(name, *pointers, precision=layer.kind, hot=hot, targets=targets))

    def add_layer(
        name: str, layer: Layer, *, most: int = 2, row: int = 320010, targets: tuple[int, ...] | None = None
    ) -> None:
        """`most`: 1 for a plain step alone; `row`: entries between the trajectories' parameters."""
        for pairs in (1, 2)[:most]:
            call, splits = plan_convolution(layer, pairs=pairs)
            add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, call, "mmwmw", targets)
            if splits > 1:
                add(name, layer, plan_split_sum(layer, splits, 1), "mm", targets)
        if most > 1:
            call, splits = plan_dual(layer)
            add(name, layer, call, "mmmmww", targets)
            if splits > 1:
                add(name, layer, plan_split_sum(layer, splits, 2), "mm", targets)
        for pairs in (1, 2)[:most]:
            for target in TARGETS if targets is None else targets:
                call, splits = plan_weight_gradient(layer, pairs=pairs, shared=TARGETS[target])
                add(f"{name}, {pairs} product{'s' * (pairs - 1)}", layer, call, "mmmmm", (target,))
                add(name, layer, plan_weight_gradient_sum(layer, splits, row, 3968, False), "mm", (target,))

    for batch, block, size in ((10, 2, 16), (10, 3, 8), (100, 2, 16), (100, 3, 8), (1000, 2, 16)):
        add_layer(f"32 px, block {block}, batch {batch}", Layer(1, batch, size, size, 128, 128))
    add_layer("64 px, block 2, batch 100", Layer(1, 100, 32, 32, 128, 128))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "bf16"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee"))
    add_layer("32 px, block 2, batch 100", Layer(1, 100, 16, 16, 128, 128, "ieee", torch.float64))
    layer = Layer(1, 100, 16, 16, 128, 128)
    call = plan_pack(2, 1, 128, 128, 320010, 3968, 147840, torch.float32, torch.float32)
    add("both layers of 32 px", layer, call, "wwm", None)
    for sizes in EVERY:
        for block, side in enumerate(sizes.maps, 2):
            layer = Layer(sizes.trajectories, sizes.batch, side, side, WIDTH, WIDTH, sizes.precision)
            most = 1 if sizes.training else 2
            add_layer(f"{sizes.name}, block {block}", layer, most=most, row=sizes.parameters, targets=NEWEST)
        kind = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
        call = plan_pack(
            len(sizes.later), sizes.trajectories, WIDTH, WIDTH, sizes.parameters, sizes.later[0],
            sizes.later[1] - sizes.later[0], torch.float32, kind,
        )  # fmt: skip
        add(sizes.name, layer, call, "wwm", NEWEST)
    return distinct(found)
