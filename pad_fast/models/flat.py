"""Any network as a function of one flat parameter vector."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .convnet import ConvNet, ConvNetConfig
from .recognition import Recognised, recognise

# Agreement asked of two float64 forward passes that sum in different orders.
_TOLERANCE = 1e-9
# Magnitudes of parameters and images that they are compared at: small ones show an eps of the norm, large ones a bound
# on activations or images.
_SCALES = ((0.3, 1.0), (10.0, 100.0))

# A module and what its buffers are exchanged for, see :meth:`FlatNetwork.with_buffers`.
_buffers: ContextVar[tuple[nn.Module, dict[str, Tensor]] | None] = ContextVar("_buffers", default=None)

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,  # BatchNorm and InstanceNorm in every dimension
)


@dataclass(frozen=True)
class Channels:
    """Output channels of one layer in the flat vector: `rows` pieces of `length` entries, the first at `offset`."""

    offset: int
    rows: int
    length: int


class FlatNetwork:
    """A module called as `network(theta, images)` with `theta` in `parameters()` order.

    Three kinds of model are understood: a :class:`pad_fast.ConvNet`, any other `nn.Module`, and the wrapper that
    published trajectory-matching scripts use, whose `forward` takes `flat_param=`. The module's own parameters are
    never written to. Its buffers (batch-norm statistics) are updated as an ordinary training step would.

    Args:
        module: the network; its training mode is respected. Of `nn.DataParallel` and `DistributedDataParallel` the
            network inside is taken: splitting a batch is not their business here. So is that of `torch.compile`, whose
            graphs cannot be differentiated twice: it runs as it was written.
        image_shape: `(C, H, W)` of the images it will see, which a ConvNet of somebody else's is recognised by; or what
            finds it when that is asked for.

    Attributes:
        convnet: the configuration of the ConvNet that the module computes, or a sentence why it is none.

    Raises:
        InputError: the module has no parameters, or some that are not ordinary floating tensors; or it is scripted.
    """

    def __init__(
        self, module: nn.Module, *, image_shape: Sequence[int] | Callable[[], Sequence[int]] | None = None
    ) -> None:
        self.module = module = _inside(module)
        self._image_shape = image_shape
        self.takes_flat_param = "flat_param" in inspect.signature(module.forward).parameters
        parameters = dict(module.named_parameters())
        if not parameters:
            raise InputError(f"{type(module).__name__} has no parameters, so there is no trajectory to match")
        for name, parameter in parameters.items():
            _require_plain(name, parameter, type(module).__name__)
        if self.takes_flat_param:
            # The wrapper keeps one vector; names and shapes of what it was made of are its private matter.
            self.names: tuple[str, ...] = ("flat_param",)
            self.shapes: tuple[torch.Size, ...] = (torch.Size([sum(p.numel() for p in parameters.values())]),)
        else:
            self.names = tuple(parameters)
            self.shapes = tuple(parameter.shape for parameter in parameters.values())
        self.sizes = tuple(shape.numel() for shape in self.shapes)
        self.parameter_count = sum(self.sizes)

    def __repr__(self) -> str:
        return f"FlatNetwork({type(self.module).__name__}, {self.parameter_count:,} parameters)"

    @cached_property
    def image_shape(self) -> tuple[int, ...] | None:
        given = self._image_shape() if callable(self._image_shape) else self._image_shape
        return None if given is None else tuple(given)

    @cached_property
    def recognised(self) -> Recognised | str:
        """The ConvNet of ours that computes the same, whatever the order of its parameters, or why there is none."""
        return recognise(self.module, self.image_shape, self._differs)

    @cached_property  # asked for in every step
    def convnet(self) -> ConvNetConfig | str:
        found = self.recognised
        if isinstance(found, str):
            return found
        if found.pieces is not None:
            return f"{type(self.module).__name__} has its parameters in another order"
        return found.config

    def rearranged(self) -> tuple[FlatNetwork, tuple[slice, ...]] | None:
        """A ConvNet of ours that computes the same with its parameters in another order, and where each of them lies.

        None where there is no such ConvNet, or the order is the same.
        """
        found = self.recognised
        return None if isinstance(found, str) or found.pieces is None else (_ours(found.config), found.pieces)

    def _differs(self, found: Recognised) -> str | None:
        """What tells it from a ConvNet of ours: the logits at random parameters, to rounding in float64."""
        ours = _ours(found.config)
        if ours.parameter_count != self.parameter_count:
            return f"it has {self.parameter_count:,} parameters, a ConvNet of its layers {ours.parameter_count:,}"
        assert self.image_shape is not None  # nothing is recognised without
        device = next(self.module.parameters()).device
        draws = torch.Generator().manual_seed(0)
        for parameters, pixels in _SCALES:
            # Norm scales and shifts off 1 and 0, and biases that must cancel: else an exchanged order could go
            # unnoticed.
            theta = parameters * torch.randn(self.parameter_count, generator=draws, dtype=torch.float64).to(device)
            images = pixels * torch.randn(3, *self.image_shape, generator=draws, dtype=torch.float64).to(device)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                expected = ours(theta if found.pieces is None else rearrange(theta, found.pieces), images)
                got = self._drawing_nothing(theta, images)
            if isinstance(got, str):
                return got
            if got.shape != expected.shape or got.dtype != expected.dtype:
                return f"its forward returns {got.dtype} {list(got.shape)} for three images in float64"
            if not bool((got - expected).norm() <= _TOLERANCE * expected.norm()):
                return "its modules are those of an instance-norm ConvNet, but its forward computes something else"
        return None

    def _drawing_nothing(self, theta: Tensor, images: Tensor) -> Tensor | str:
        """Logits of a call that leaves torch's generators where they were, or what went wrong."""
        cuda = [images.device] if images.device.type == "cuda" else []

        def states() -> list[Tensor]:
            return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in cuda)]

        with torch.random.fork_rng(devices=cuda):
            before = states()
            try:
                got = self(theta, images)
            except (
                Exception
            ) as error:  # the caller's code, which may refuse float64 or three images in any way it likes
                return f"its forward fails on three images in float64 ({type(error).__name__})"
            drew = not all(map(torch.equal, before, states()))
        if drew:
            return "its forward draws random numbers"
        return got if isinstance(got, Tensor) else f"its forward returns a {type(got).__name__}"

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Logits `[B, classes]` of `images` `[B, C, H, W]` under parameters `theta` `[P]`."""
        exchanged = _buffers.get()
        tensors = {} if exchanged is None or exchanged[0] is not self.module else exchanged[1]
        if not self.takes_flat_param:
            return torch.func.functional_call(self.module, {**self.unflatten(theta), **tensors}, (images,))
        if not tensors:
            return self.module(images, flat_param=theta)
        return torch.func.functional_call(self.module, tensors, (images,), {"flat_param": theta})

    def features(self, theta: Tensor, images: Tensor, blocks: Sequence[int] | None = None) -> list[Tensor]:
        """Flattened maps `[B, F_d]` behind the first d blocks of a ConvNet, for each d of `blocks`.

        None asks for the classifier's inputs alone, which every network of ours offers.

        Raises:
            InputError: the module does not offer them.
        """
        inside = _Features(self.module, blocks)
        parameters = {f"module.{name}": piece for name, piece in self.unflatten(theta).items()}
        return torch.func.functional_call(inside, parameters, (images,))

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of `theta` `[P]` under the module's parameter names."""
        pieces = theta.split(self.sizes)
        return {name: piece.view(shape) for name, piece, shape in zip(self.names, pieces, self.shapes, strict=True)}

    def initial(self) -> Tensor:
        """The module's current parameters as a new vector `[P]` that shares no memory with them."""
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.module.parameters()]).clone()

    def load(self, theta: Tensor) -> nn.Module:
        """Copy `theta` `[P]` into the module's own parameters and return the module."""
        with torch.no_grad():
            # Not vector_to_parameters, which makes the parameters views of the vector.
            for parameter, piece in zip(self.module.parameters(), theta.split(self.sizes), strict=True):
                parameter.copy_(piece.view_as(parameter))
        return self.module

    def layer_starts(self) -> tuple[int, ...]:
        """Flat offset at which each layer begins: a convolution or linear map with its bias and the norm after it.

        Raises:
            InputError: the model is a flat-parameter wrapper around a network that is not a ConvNet like ours, and
                does not say where its layers begin.
        """
        if self.takes_flat_param:
            if isinstance(self.convnet, str):
                raise InputError(
                    f"{type(self.module).__name__} holds one flat vector, so layers cannot be counted; "
                    "use ParameterMask.depth(ratio), or pass the network without its wrapper"
                )
            return _ours(self.convnet).layer_starts()
        starts: list[int] = []
        previous: str | None = None
        offset = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            owner = name.rpartition(".")[0]
            if owner != previous and not (starts and isinstance(self.module.get_submodule(owner), _NORMS)):
                starts.append(offset)
            previous = owner
            offset += size
        return tuple(starts)

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The module's buffers by name."""
        return self.module.named_buffers()

    @contextmanager
    def with_buffers(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Calls of this thread read and write these in place of the module's own buffers, which stay as they are.

        A step evaluated a second time must not count twice in the statistics.
        """
        token = _buffers.set((self.module, values))
        try:
            yield
        finally:
            _buffers.reset(token)


def rearrange(theta: Tensor, pieces: Sequence[slice]) -> Tensor:
    """The pieces of `theta` `[..., P]` one behind the other."""
    return torch.cat([theta[..., piece] for piece in pieces], -1)


@lru_cache(maxsize=16)
def _ours(config: ConvNetConfig) -> FlatNetwork:
    return FlatNetwork(ConvNet.meta(config))


def _inside(module: nn.Module) -> nn.Module:
    """The network within wrappers that change how it runs and not what it computes."""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(compiled := getattr(module, "_orig_mod", None), nn.Module):
            module = compiled
        else:
            break
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{getattr(module, 'original_name', 'the network')} is scripted or traced, and keeps its parameters where "
            "no other vector can take their place; pass the nn.Module it was made of"
        )
    return module


def _require_plain(name: str, parameter: nn.Parameter, network: str) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise InputError(
            f"{name} of {network} is lazy and has no shape yet; call the network once on a batch of images, "
            "then take its parameters"
        )
    if not parameter.is_floating_point() or parameter.layout is not torch.strided:
        raise InputError(
            f"{name} of {network} is {parameter.dtype} ({parameter.layout}); a flat parameter vector holds real "
            "floating numbers only, so use a network whose parameters are dense and floating"
        )


class _Features(nn.Module):
    """A network up to its features, callable with other parameters."""

    def __init__(self, module: nn.Module, blocks: Sequence[int] | None) -> None:
        super().__init__()
        self.module, self.blocks = module, blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        if self.blocks is None:
            return [embed(self.module, images)]
        method: Callable[[Tensor], list[Tensor]] | None = getattr(self.module, "block_maps", None)
        if method is None:
            raise InputError(f"{type(self.module).__name__} has no blocks to look behind; use a ConvNet")
        maps = method(images)
        return [maps[depth - 1].flatten(1) for depth in self.blocks]


def embed(module: nn.Module, images: Tensor) -> Tensor:
    """Penultimate features `[B, F]` of a network of ours.

    Raises:
        InputError: the module offers no `embed` method.
    """
    method: Callable[[Tensor], Any] | None = getattr(module, "embed", None)
    if method is None:
        raise InputError(
            f"{type(module).__name__} has no embed(images) method that returns its penultimate features; "
            "use a network from pad_fast.network, or add one"
        )
    return method(images)
