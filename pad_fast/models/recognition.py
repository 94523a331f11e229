"""Recognising networks written elsewhere that compute what a :class:`ConvNet` of ours does: native engines serve them.

Scripts bring their own ConvNet, often inside a wrapper whose `forward` takes `flat_param=`. Its modules say what it
probably computes; its `forward` could still do anything, so forward passes in float64 are compared before that is
believed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.loss import _Loss

from .convnet import ConvNet, ConvNetConfig
from .layers import ImageNetwork
from .structure import structure_of

_LAYERS = (nn.Conv2d, nn.GroupNorm, nn.InstanceNorm2d, nn.Linear)
# Modules of torch without parameters whose part in a forward pass shows in any comparison, unlike that of ReLU6, which
# is ReLU up to a bound. Many a network carries some that it does not use.
_SHOWING = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softmax,
    nn.LogSoftmax,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.MaxPool2d,
    nn.Upsample,
    nn.Flatten,
    nn.Unflatten,
    nn.Identity,
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    _Loss,
)
_KEPT = 64

_by_structure: dict[Hashable, Recognised | str] = {}
_by_module: WeakKeyDictionary[nn.Module, dict[Hashable, Recognised | str]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Recognised:
    """A ConvNet of ours that computes the same.

    Attributes:
        config: which one.
        pieces: where its parameters lie in the flat vector of the network that was recognised, in the order of ours:
            NCFM's ConvNet has all convolutions ahead of all norms. None where the two vectors are the same.
    """

    config: ConvNetConfig
    pieces: tuple[slice, ...] | None = None


def recognise(
    module: nn.Module, image_shape: tuple[int, ...] | None, differs: Callable[[Recognised], str | None]
) -> Recognised | str:
    """The :class:`ConvNet` that computes the same as `module` with the same parameters, or why there is none.

    Args:
        module: a network, or a flat-parameter wrapper around one.
        image_shape: `(C, H, W)` of the images it will see; None when unknown, and then only ConvNets of ours are known.
        differs: what forward passes of `module` do that those of this ConvNet do not, None if nothing; asked once for
            all modules that compute the same as `module`, and where that cannot be told, once for `module`.

    Returns:
        What was recognised, or a sentence for the user.
    """
    if isinstance(module, ConvNet) and _is_as_made(module):
        return Recognised(module.config)
    name = type(module).__name__
    if image_shape is None:
        return f"{name} is not a pad_fast.ConvNet"
    structure = structure_of(module)
    key: Hashable
    if structure is None:
        # The parts are part of the key: a layer exchanged since must not go unnoticed.
        answers, key = _by_module.setdefault(module, {}), (image_shape, *map(_part, module.modules()))
    else:
        answers, key = _by_structure, (image_shape, structure)
    answer = answers.get(key)
    if answer is None:
        if len(answers) >= _KEPT:
            answers.clear()
        found = _describe(module, image_shape)
        if isinstance(found, Recognised):
            found = differs(found) or found
        answer = answers[key] = f"{name} is not one: {found}" if isinstance(found, str) else found
    return answer


def _is_as_made(module: ConvNet) -> bool:
    """Whether a ConvNet of ours, or of a class derived from ours, still computes what its configuration says."""
    kind = type(module)
    return (
        kind.forward is ImageNetwork.forward
        and kind.embed is ConvNet.embed
        and not {"forward", "embed"} & vars(module).keys()
        and not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        and (repr(module.features), repr(module.classifier)) == _parts(module.config)
    )


@lru_cache(maxsize=_KEPT)
def _parts(config: ConvNetConfig) -> tuple[str, str]:
    made = ConvNet.meta(config)
    return repr(made.features), repr(made.classifier)


def _part(module: nn.Module) -> Hashable:
    """What is looked at of a module that cannot be compared by value."""
    own = type(module).__name__ if _is_container(module) else repr(module)
    return own, module.training, *module._forward_hooks, *module._forward_pre_hooks


def _is_container(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _describe(module: nn.Module, image_shape: tuple[int, ...]) -> Recognised | str:
    """Modules read as convolutions, as many norms, and a classifier."""
    channels, height, width = image_shape if len(image_shape) == 3 else (0, 0, 0)
    if height != width or not height:
        return f"images of shape {list(image_shape)} are not square"
    layers = [part for part in module.modules() if isinstance(part, _LAYERS)]
    for part in module.modules():
        if part is not module and not _shows(part):
            return f"it contains {type(part).__name__}"
    convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d))]
    classifiers = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if not (convs and len(convs) == len(norms) and len(classifiers) == 1):
        return "it is not blocks of a convolution and an instance norm in front of one linear layer"
    (classifier,), net_width = classifiers, convs[0].out_channels
    config = ConvNetConfig(
        channels=channels,
        classes=classifier.out_features,
        width=net_width,
        depth=len(convs),
        resolution=height,
        norm="instance",
        activation="relu",
        pooling="avg",
    )
    last = config.map_sizes[-1]
    if last < 1 or classifier.in_features != net_width * last * last:
        return (
            f"its classifier reads {classifier.in_features} features, where {len(convs)} halvings of {height} px "
            f"leave {net_width * last * last}"
        )
    sizes: dict[nn.Module, int] = {}  # parameters of each layer, in our order; a wrapper has taken them out of it
    for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        inputs, padding = (net_width, 1) if index else (channels, config.first_padding)
        complaint = _odd(conv, inputs, padding) or _odd_norm(norm, net_width)
        if complaint:
            return f"in block {index + 1} {complaint}"
        sizes |= {conv: net_width * (9 * inputs + 1), norm: 2 * net_width}
    if classifier.bias is None:
        return "its classifier has no bias"
    sizes[classifier] = classifier.out_features * (classifier.in_features + 1)
    if list(sizes) == layers:
        return Recognised(config)
    ends = list(accumulate(sizes[layer] for layer in layers))
    places: dict[nn.Module, slice] = {
        layer: slice(end - sizes[layer], end) for layer, end in zip(layers, ends, strict=True)
    }
    return Recognised(config, tuple(places[layer] for layer in sizes))


def _shows(part: nn.Module) -> bool:
    """Whether what a part does is looked at, here or by the comparison of forward passes."""
    if isinstance(part, _DropoutNd):
        return part.p == 0 or not part.training
    known = isinstance(part, (*_LAYERS, *_SHOWING)) or not type(part).__module__.startswith("torch.")
    return known or _is_container(part)


def _odd(conv: nn.Conv2d, inputs: int, padding: int) -> str | None:
    """The difference of a convolution from ours."""
    expected = {
        "in_channels": inputs,
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (padding, padding),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    for name, value in expected.items():
        given = getattr(conv, name)
        if given != value and not (name == "padding" and (given, value) == ("same", (1, 1))):
            return f"the convolution has {name} {given}, ours {value}"
    return "the convolution has no bias" if conv.bias is None else None


def _odd_norm(norm: nn.GroupNorm | nn.InstanceNorm2d, width: int) -> str | None:
    """The difference of a normalisation from instance norm with scale and shift."""
    if isinstance(norm, nn.GroupNorm):
        instance = norm.num_groups == norm.num_channels == width
    else:
        instance = norm.num_features == width and not norm.track_running_stats
    if not (instance and norm.affine and norm.eps == 1e-5):
        return f"{norm} is not an instance norm of {width} channels with scale, shift and eps 1e-5"
    return None
