"""A launch stated once: what runs, what is counted and what is compiled ahead of time come from the same words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .launch import TARGETS, Cost, launch

if TYPE_CHECKING:
    from .aot import Production

PROGRAMS = 256
"""Programs that occupy a large GPU, about two for each of its processors."""


@dataclass(frozen=True, eq=False)
class Call:
    """One launch of a kernel.

    Attributes:
        kernel: a `triton.jit` function.
        grid: programs along each axis.
        args: the run-time arguments in the kernel's order. A call that is made once for many tensors leaves these out:
            they are the kernel's first arguments, and whoever runs the call gives them.
        cost: of the launch, whatever the tensors hold.
        options: the kernel's constants by name, and compiler options such as `num_warps`.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    cost: Cost
    options: Mapping[str, Any]

    def run(self, *tensors: Tensor) -> None:
        """Launch it, with these in front of its own arguments."""
        launch(self.kernel, self.grid, *tensors, *self.args, cost=self.cost, **self.options)

    def production(
        self,
        name: str,
        *tensors: Tensor | str,
        hot: bool = True,
        precision: str = "ieee",
        targets: tuple[int, ...] | None = None,
    ) -> Production:
        """The same launch for the compiler.

        Args:
            name: the configuration in a few words.
            tensors: as for :meth:`run`. They and the call's own may be on the "meta" device; "*fp32" stands for one.
            hot, precision: see :class:`pad_fast.kernels.aot.Production`.
            targets: compute capabilities on which this launch is chosen; None for all.
        """
        from .aot import production_of

        return production_of(
            name,
            self.kernel,
            *tensors,
            *self.args,
            cost=self.cost,
            precision=precision,
            hot=hot,
            targets=tuple(TARGETS) if targets is None else targets,
            **self.options,
        )


def run_all(calls: Iterable[Call]) -> None:
    """Launch one after the other."""
    for call in calls:
        call.run()


def moved(*tensors: Tensor, flops: int = 0) -> Cost:
    """The cost of touching each tensor once, with so many operations."""
    return Cost(sum(tensor.nbytes for tensor in tensors), flops)


def capability(device: torch.device) -> int:
    """Compute capability that tiles are chosen for, ten times the usual number; 90 where there is no GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may have on a device; an H200's where there is no GPU."""
    if device.type != "cuda":
        return TARGETS[90]
    properties = torch.cuda.get_device_properties(device)
    # What CUDA kernels get on request; torch's annotations leave it out, and AMD's cards have no more than the other.
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))


def with_further(listed: list[Production], sizes: Iterable[Production]) -> list[Production]:
    """All that are listed, and of further sizes those that do not compile to what one of them does."""
    programs = {item.program for item in listed}
    return listed + [item for item in distinct(sizes) if item.program not in programs]


def distinct(found: Iterable[Production]) -> list[Production]:
    """Without those that compile to what an earlier one does; what two capabilities share is one production."""
    seen: dict[str, Production] = {}
    for item in found:
        first = seen.setdefault(item.program, item)
        seen[item.program] = replace(first, targets=tuple(sorted({*first.targets, *item.targets})))
    return list(seen.values())
