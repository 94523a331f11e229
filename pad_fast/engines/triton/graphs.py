"""Work recorded once and replayed: on small batches, starting kernels one by one costs more than running them.

A recording is a CUDA graph with tensors of its own as inputs and outputs. Work is run plainly the first time its shapes
are seen, which compiles and chooses kernels; recorded when it comes again; replayed from then on. The first plain run,
too, works on copies: kernels are compiled for the alignment and the strides of what they are given, and nothing may be
left to compile while a graph is captured. Recordings that were not used for longest are dropped.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..base import Inputs, Passes

logger = logging.getLogger("pad_fast")

Work = Callable[..., tuple[Tensor | None, ...]]

# Work whose shapes are known, with or without a recording.
_KEYS_KEPT = 64

# Plain calls of a function before it is recorded: GSAM asks twice in a step, and a curriculum that grows leaves a last
# batch of a new size in every epoch, which comes once.
_PLAIN_CALLS = 4


class Recorder(Protocol):
    """Records work on fixed tensors. One recorder's recordings may use the same memory for what they leave behind."""

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Take down what `work` does; it may or may not be done by this.

        Returns:
            A function that does it again, and what `work` returned: tensors that every replay fills anew.
        """


class CudaRecorder:
    """Records CUDA graphs with one pool of memory for all of them, so that they must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """See :class:`Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                # A stream of this device: torch's own for captures belongs to the device of the first one. Only this
                # thread is held to what a capture allows; others may go on with work of their own.
                with torch.cuda.graph(
                    graph, pool=self.pool, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
                ):
                    result = work()
            finally:
                # A capture that fails at its end leaves its stream current.
                torch.cuda.set_stream(before)
        return graph.replay, result


class Graphs:
    """Recordings by what they do.

    Args:
        recorder: makes a recorder for a device.
        kept: recordings of unrolled runs that are kept, and as many of other work. Each holds its activations' memory.

    Attributes:
        recorded: how many recordings were made.
        recording: whether one is being made right now.
    """

    def __init__(self, recorder: Callable[[torch.device], Recorder] = CudaRecorder, *, kept: int = 4) -> None:
        self.recorder, self.kept = recorder, kept
        self.recorded = 0
        self.recording = False
        self._runs: OrderedDict[Hashable, _Known] = OrderedDict()
        self._functions: OrderedDict[Hashable, _Known] = OrderedDict()

    def passes(self, key: Hashable, make: Callable[[], Passes], device: torch.device) -> Passes:
        """Passes for one run: plain ones the first time, recorded ones after that.

        A recording serves one run at a time, from its forward pass until it was pulled back or nothing refers to it any
        more. A run that finds none free, and no room for another, goes plainly.
        """
        known = self._known(self._runs, key)
        if not known.seen or known.refused:
            known.seen += 1
            return _Warming(make(), known)
        if not known.free:
            if not self._make_room(self._runs):
                return make()
            known.free.append(_RecordedPasses(make(), self, self.recorder(device)))
            known.count += 1
        return _Lease(known, make)

    def first(self, key: Hashable, value: int) -> int:
        """What was given for the first run with this key: for what decides its launches, and is no part of the key."""
        known = self._known(self._runs, key)
        if known.given is None:
            known.given = value
        return known.given

    def call(self, key: Hashable, work: Work, inputs: Sequence[Tensor], device: torch.device) -> tuple[Any, ...]:
        """`work(*inputs)`, recorded when it is called again with the same key and shapes. Returns new tensors."""
        key = key, signature(inputs)
        known = self._known(self._functions, key)
        known.seen += 1
        if known.seen == 1:
            return work(*map(_own, inputs))
        if known.refused or known.seen <= _PLAIN_CALLS:
            return work(*inputs)
        if not known.free:
            self._make_room(self._functions)
            try:
                known.free.append(_RecordedFunction(work, inputs, self, self.recorder(device)))
                known.count = 1
            except RuntimeError as error:
                self.refuse(known, error)
                return work(*inputs)
        function: _RecordedFunction = known.free[0]
        return function(inputs)

    def record(self, recorder: Recorder, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record `work` and count it."""
        self.recording = True
        try:
            result = recorder.record(work)
        finally:
            self.recording = False
        self.recorded += 1
        return result

    def clear(self) -> bool:
        """Give up every recording that nobody uses, and its memory; whether there was one."""
        dropped = False
        for table in (self._runs, self._functions):
            for known in table.values():
                dropped |= bool(known.free)
                known.count -= len(known.free)
                known.free.clear()
        return dropped

    def refuse(self, known: _Known, error: RuntimeError) -> None:
        """Never record this work again, and say why. An error of the work itself will show when it is run plainly."""
        known.refused = True
        known.count -= len(known.free)
        known.free.clear()
        if isinstance(error, torch.OutOfMemoryError):
            self.clear()
        logger.warning(f"could not record a CUDA graph, so kernels are started one by one: {error}")

    @staticmethod
    def _known(table: OrderedDict[Hashable, _Known], key: Hashable) -> _Known:
        known = table.setdefault(key, _Known())
        table.move_to_end(key)
        while len(table) > _KEYS_KEPT:
            table.popitem(last=False)
        return known

    def _make_room(self, table: OrderedDict[Hashable, _Known]) -> bool:
        """Drop idle recordings, those not used for longest first, until there is room for one more."""
        for known in table.values():
            while known.free and self._count(table) >= self.kept:
                known.free.pop()
                known.count -= 1
        return self._count(table) < self.kept

    @staticmethod
    def _count(table: OrderedDict[Hashable, _Known]) -> int:
        return sum(known.count for known in table.values())


def signature(tensors: Sequence[Tensor | None]) -> tuple[Hashable, ...]:
    """Shapes and dtypes: what a recording cannot change."""
    return tuple(None if tensor is None else (tuple(tensor.shape), tensor.dtype) for tensor in tensors)


class _Known:
    """Work that was seen, how often until it was recorded, its recordings, and how many of them there are in all."""

    def __init__(self) -> None:
        self.seen = 0
        self.given: int | None = None
        self.reversed = False
        self.refused = False
        self.free: list[Any] = []
        self.count = 0

    def take_back(self, recorded: Any) -> None:
        """A recording nobody uses any more."""
        if self.refused:
            self.count -= 1
        else:
            self.free.append(recorded)


class _Warming(Passes):
    """The first run of its kind."""

    def __init__(self, passes: Passes, known: _Known) -> None:
        self.passes, self.known = passes, known

    def forward(self, inputs: Inputs) -> Tensor:
        self.inputs = _copies(inputs)
        return self.passes.forward(self.inputs)

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = self.passes.reverse(self.inputs, _own(grad_loss))
        self.known.reversed = True
        return grads


class _Lease(Passes):
    """One run's use of a recording, from its forward pass until it was pulled back or nothing refers to it."""

    def __init__(self, known: _Known, make: Callable[[], Passes]) -> None:
        self.known, self.make = known, make
        self.recorded: _RecordedPasses = known.free.pop()
        self.plain: Passes | None = None
        self.give_back = weakref.finalize(self, known.take_back, self.recorded)
        self.give_back.atexit = False

    def forward(self, inputs: Inputs) -> Tensor:
        try:
            losses = self.recorded.forward(inputs)
        except RuntimeError as error:
            self.recorded.graphs.refuse(self.known, error)
            self.give_back()
            self.plain = self.make()
            return self.plain.forward(inputs)
        self.run = self.recorded.runs
        return losses

    def reverse(self, inputs: Inputs, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if self.plain is None and self.recorded.runs != self.run:
            # Pulled back a second time, and the recording has served another run since the first.
            self.plain = self.make()
            self.plain.forward(inputs)
        if self.plain is not None:
            return self.plain.reverse(inputs, grad_loss)
        grads = self._recorded(grad_loss)
        if grads is None:
            grads = self.recorded.plain_reverse(grad_loss)
            self.known.reversed = True
        self.give_back()
        return grads

    def _recorded(self, grad_loss: Tensor) -> tuple[Tensor | None, ...] | None:
        """None where the reverse pass has not run yet or cannot be recorded."""
        if not self.known.reversed or self.known.refused:
            return None
        try:
            return self.recorded.reverse(grad_loss)
        except RuntimeError as error:
            self.recorded.graphs.refuse(self.known, error)
            return None


class _RecordedPasses:
    """Both passes of a run on tensors of their own; `runs` counts the forward passes."""

    def __init__(self, passes: Passes, graphs: Graphs, recorder: Recorder) -> None:
        self.inner, self.graphs, self.recorder = passes, graphs, recorder
        self.inputs: Inputs | None = None
        self._forward: tuple[Callable[[], None], Tensor] | None = None
        self._reverse: tuple[Callable[[], None], tuple[Tensor | None, ...]] | None = None
        self._grad_loss: Tensor | None = None
        self.runs = 0

    def forward(self, inputs: Inputs) -> Tensor:
        if self.inputs is None or self._forward is None:
            own = _copies(inputs)
            self._forward = self.graphs.record(self.recorder, lambda: self.inner.forward(own))
            self.inputs = own
        else:
            _copy(inputs, self.inputs)
        replay, losses = self._forward
        replay()
        self.runs += 1
        return losses.clone()

    def reverse(self, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Pull back through the last forward pass."""
        if self._reverse is None or self._grad_loss is None:
            own, own_inputs = _own(grad_loss), self._inputs()
            self._reverse = self.graphs.record(self.recorder, lambda: self.inner.reverse(own_inputs, own))
            self._grad_loss = own
        else:
            self._grad_loss.copy_(grad_loss)
        replay, grads = self._reverse
        replay()
        return tuple(None if grad is None else grad.clone() for grad in grads)

    def plain_reverse(self, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """The reverse pass without a recording."""
        return self.inner.reverse(self._inputs(), _own(grad_loss))

    def _inputs(self) -> Inputs:
        assert self.inputs is not None  # forward() ran
        return self.inputs


class _RecordedFunction:
    """A function of tensors on tensors of its own."""

    def __init__(self, work: Work, inputs: Sequence[Tensor], graphs: Graphs, recorder: Recorder) -> None:
        self.inputs = [_own(tensor) for tensor in inputs]
        self.replay, self.outputs = graphs.record(recorder, lambda: work(*self.inputs))

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        _copy(inputs, self.inputs)
        self.replay()
        return tuple(None if output is None else output.clone() for output in self.outputs)


def _own(tensor: Tensor) -> Tensor:
    """A copy with the strides of a new tensor, whatever the caller's are: `clone` keeps a stride of 0 over one row."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _copies(inputs: Inputs) -> Inputs:
    return Inputs._make(None if tensor is None else _own(tensor) for tensor in inputs)


def _copy(source: Sequence[Tensor | None], target: Sequence[Tensor | None]) -> None:
    for given, own in zip(source, target, strict=True):
        if given is not None and own is not None:
            own.copy_(given)
