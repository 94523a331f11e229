"""Recognising networks written elsewhere that compute what a :class:`ConvNet` of ours does: native engines serve them.

Scripts bring their own ConvNet, often inside a wrapper whose `forward` takes `flat_param=`. Its modules say what it
probably computes; its `forward` could still do anything, so one forward pass in float64 is compared before that is
believed.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from torch import nn

from .convnet import ConvNet, ConvNetConfig

_SILENT = (nn.ReLU, nn.AvgPool2d, nn.Flatten, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict)

_known: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], ConvNetConfig | str]] = WeakKeyDictionary()


def recognise(
    module: nn.Module, image_shape: tuple[int, ...] | None, computes: Callable[[ConvNetConfig], bool]
) -> ConvNetConfig | str:
    """The :class:`ConvNet` that computes the same as `module` with the same flat parameters, or why there is none.

    Args:
        module: a network, or a flat-parameter wrapper around one.
        image_shape: `(C, H, W)` of the images it will see; None when unknown, and then only ConvNets of ours are known.
        computes: whether a forward pass of `module` gives what this ConvNet gives; asked once per module and shape.

    Returns:
        The configuration, or a sentence for the user.
    """
    if isinstance(module, ConvNet):
        return module.config
    name = type(module).__name__
    if image_shape is None:
        return f"{name} is not a pad_fast.ConvNet"
    # The parts are part of the key: a layer exchanged since must not go unnoticed.
    key = (image_shape, module.training, *(repr(part) for part in module.modules() if not _is_container(part)))
    answers = _known.setdefault(module, {})
    if key not in answers:
        described = _describe(module, image_shape)
        if isinstance(described, ConvNetConfig) and not computes(described):
            described = "its modules are those of an instance-norm ConvNet, but its forward computes something else"
        answers[key] = described if isinstance(described, ConvNetConfig) else f"{name} is not one: {described}"
    return answers[key]


def _is_container(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _describe(module: nn.Module, image_shape: tuple[int, ...]) -> ConvNetConfig | str:
    """Modules read as [conv, norm] per block and a classifier, in the order of the flat vector."""
    channels, height, width = image_shape if len(image_shape) == 3 else (0, 0, 0)
    if height != width or not height:
        return f"images of shape {list(image_shape)} are not square"
    layers: list[nn.Module] = []
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.GroupNorm, nn.InstanceNorm2d, nn.Linear)):
            layers.append(part)
        elif not _is_container(part) and part is not module and not isinstance(part, _SILENT):
            return f"it contains {type(part).__name__}"
    *body, classifier = layers or [module]
    convs = [layer for layer in body[::2] if isinstance(layer, nn.Conv2d)]
    norms = [layer for layer in body[1::2] if isinstance(layer, (nn.GroupNorm, nn.InstanceNorm2d))]
    if not (convs and 2 * len(convs) == 2 * len(norms) == len(body) and isinstance(classifier, nn.Linear)):
        return "it is not blocks of a convolution and an instance norm in front of one linear layer"
    net_width = convs[0].out_channels
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
    for index, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        complaint = _odd(conv, channels if index == 0 else net_width, config.first_padding if index == 0 else 1)
        complaint = complaint or _odd_norm(norm, net_width)
        if complaint:
            return f"in block {index + 1} {complaint}"
    return config


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
        if getattr(conv, name) != value:
            return f"the convolution has {name} {getattr(conv, name)}, ours {value}"
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
