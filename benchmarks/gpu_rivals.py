"""The plain side of `benchmarks.gpu` in its stronger forms: other memory formats, compiled steps, CUDA graphs.

A CUDA graph holds everything that is started while it is captured, with the tensors it is started on. So whoever
captures work warms it up on a stream of its own first, keeps its inputs on the device in tensors that stay, and reads
nothing from the device. A captured unroll holds the activations of all its steps, as the eager one does; graphs of
single steps would have to keep the same until the last of them was pulled back, and start T graphs each way instead of
one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_cases import Plain
from benchmarks.gpu_timing import NeedsCudaError
from benchmarks.rivals import Step, TrainingStep, autograd_step, compiled_step
from pad_fast import DSA
from pad_fast.data.augment import DSADraw
from pad_fast.engines.triton.graphs import CudaRecorder

# Runs before a capture: libraries are loaded, algorithms tried, code compiled.
_WARM = 3


class Drawn:
    """An augmentation `(images, step) -> images` that was drawn before, its numbers on the device."""

    def __init__(self, draws: Sequence[DSADraw], device: torch.device) -> None:
        self.draws = [DSADraw(draw.operation, draw.values.to(device)) for draw in draws]

    def __call__(self, images: Tensor, step: int) -> Tensor:
        return DSA.apply(images, self.draws[step])


def student_step(module: nn.Module, how: Plain, *, bf16: bool) -> Step:
    """The student's step that `how` asks for."""
    if how.compiled:
        return compiled_step(module, **dict(how.options))
    return autograd_step(module, tuned=how.channels_last, bf16=bf16)


def need_cuda(device: torch.device) -> None:
    """Raise NeedsCudaError where no CUDA graph can be captured: nothing else may be timed under that name."""
    if device.type != "cuda":
        raise NeedsCudaError("needs CUDA")


class Captured:
    """Work on tensors that stay, captured in a CUDA graph by the first call and replayed by every one.

    Raises:
        NeedsCudaError: the device is another one.
    """

    def __init__(self, work: Callable[[], Any], device: torch.device) -> None:
        need_cuda(device)
        self.work, self.device = work, device
        self.replay: Callable[[], None] | None = None
        self.results: Any = None

    def __call__(self) -> Any:
        """What the work gives, in the same tensors every time."""
        if self.replay is None:
            self.replay, self.results = self._capture()
        self.replay()
        return self.results

    def _capture(self) -> tuple[Callable[[], None], Any]:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                self.work()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        try:
            return CudaRecorder(self.device).record(self.work)
        except RuntimeError as error:
            # Ending a capture in which memory ran out is the error that is seen.
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None
            raise


class CapturedStep:
    """A training step captured once for every size of a batch, on inputs of its own.

    Args:
        state: everything that a step changes; a capture leaves it as it was.
    """

    def __init__(self, step: TrainingStep, state: Sequence[Tensor], device: torch.device) -> None:
        need_cuda(device)
        self.step, self.state, self.device = step, list(state), device
        self._steps: dict[int, tuple[Tensor, Tensor, Captured]] = {}

    def __call__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) not in self._steps:
            self._steps[len(inputs)] = self._captured(inputs.clone(), targets.clone())
        own_inputs, own_targets, captured = self._steps[len(inputs)]
        own_inputs.copy_(inputs)
        own_targets.copy_(targets)
        captured()

    def _captured(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Captured]:
        before = [tensor.detach().clone() for tensor in self.state]
        captured = Captured(lambda: self.step(inputs, targets), self.device)
        captured()
        with torch.no_grad():
            for tensor, kept in zip(self.state, before, strict=True):
                tensor.copy_(kept)
        return inputs, targets, captured
