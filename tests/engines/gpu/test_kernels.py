"""Kernels on a GPU, one by one beside their naive twins, as a step calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pad_fast.engines import Wants
from pad_fast.engines.triton.operations import Operations
from pad_fast.engines.triton.steps import Steps

from ...support.comparison import describe_difference, relative_error
from ...support.gpu import CIFAR, STEP, needs_gpu, problem_of

pytestmark = needs_gpu


class Compared:
    """Runs every operation's naive twin beside it, on the same tensors, and compares what they return and write."""

    def __init__(self, kind: str) -> None:
        self.kernels, self.twins, self.kind = Operations(), Operations(naive=True), kind
        self.names: set[str] = set()
        self.counterparts: list[tuple[Any, Any]] = []  # structures that only their own kind can read

    def __getattr__(self, family: str) -> Any:
        return _ComparedFamily(self, family)

    def tolerance(self, label: str) -> float:
        """Where a kernel computes ReLU's signs itself, some near zero come out the other way; see STEP."""
        if self.kind == "double":
            return 1e-10
        signs = label.startswith(("first.", "block."))
        return STEP[self.kind] if signs else {"ieee": 1e-4, "tf32": 5e-3, "bf16": 4e-2}[self.kind]

    def counterpart(self, value: Any) -> Any:
        return next((twin for own, twin in self.counterparts if own is value), value)


class _ComparedFamily:
    def __init__(self, owner: Compared, family: str) -> None:
        self.owner, self.family = owner, family

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(getattr(self.owner.kernels, self.family), name)
        if name[0].isupper():
            return kernel
        twin = getattr(getattr(self.owner.twins, self.family), name)

        def call(*args: Any, **options: Any) -> Any:
            label, position = f"{self.family}.{name}", self._written(name, args)
            given = [self.owner.counterpart(value) for value in args]
            if position is not None:
                original = args[position].clone()
                given[position] = original.clone()
            expected = twin(*given, **options)
            result = kernel(*args, **options)
            if position is not None:
                # What was there before counts only where it was added to.
                before = original if options["accumulate"] else torch.zeros_like(original)
                self._compare(label, args[position] - before, given[position] - before)
            self._compare(label, result, expected)
            return result

        return call

    def _written(self, name: str, args: tuple[Any, ...]) -> int | None:
        """Where among the arguments the flat gradients are that an operation writes into."""
        if self.family == "classifier":
            return {"backward": 3, "backward_dual": 6}.get(name)
        if name in ("weight_grad", "weight_grad_dual"):
            return len(args) - 2
        if name in ("backward", "adjoint") and self.family in ("block", "first"):
            return len(args) - (3 if self.family == "block" else 1)
        return None

    def _compare(self, label: str, result: Any, expected: Any) -> None:
        if isinstance(result, Tensor) and isinstance(expected, Tensor):
            self.owner.names.add(label)
            if label.endswith("logits"):  # parts of sums, and not as many on both sides
                result, expected = result.sum(0), expected.sum(0)
            if float(expected.double().norm()) > 0:
                error = relative_error(result, expected)
                assert error < self.owner.tolerance(label), label + ": " + describe_difference(result, expected)
        elif type(result) is tuple:
            for own, twin in zip(result, expected, strict=True):
                self._compare(label, own, twin)
        elif isinstance(result, list):
            for own, twin in zip(result, expected, strict=True):
                self.owner.counterparts.append((own, twin))
                for tensor, other in zip(own, twin, strict=True):
                    self._compare(label, tensor, other)
        elif result is not None:
            self.owner.counterparts.append((result, expected))


KERNEL_NETS: dict[str, dict[str, Any]] = {
    "cifar": CIFAR,
    "odd": {"channels": 2, "resolution": 33, "depth": 3, "width": 17, "classes": 7},
    "gray28": {"channels": 1, "resolution": 28, "depth": 3, "width": 32},
    "many_channels": {"channels": 17, "resolution": 9, "depth": 2, "width": 24},
    "tiny": {"resolution": 64, "depth": 4, "width": 64, "classes": 200},
}


@pytest.mark.parametrize("kind", ["double", "ieee", "tf32", "bf16"])
@pytest.mark.parametrize("name", KERNEL_NETS)
def test_every_kernel_against_its_twin(name, kind):
    dtype = torch.float64 if kind == "double" else torch.float32
    compared = Compared(kind)
    problem = problem_of(KERNEL_NETS[name], count=5, stacked=2, dtype=dtype)
    steps = Steps(compared, problem["model"].module.config, "ieee" if kind == "double" else kind)
    theta, x = problem["theta_start"], problem["images"][None].expand(2, -1, -1, -1, -1)
    v = torch.randn_like(theta)
    for accumulate in (False, True):
        out, kept = torch.zeros_like(theta), []
        if accumulate:
            out.normal_()
        shared = {"batch": 7, "accumulate": accumulate}
        steps.plain(theta, x, problem["labels"], out=out, keep=kept, **shared)
        wants = Wants(theta=True, images=True, labels=True)
        steps.adjoint(theta, v, x, problem["labels"], out=out, kept=None, wants=wants, **shared)
        steps.adjoint(theta, v, x, problem["labels"], out=out, kept=kept, wants=wants, **shared)
    assert len(compared.names) >= 12, compared.names
