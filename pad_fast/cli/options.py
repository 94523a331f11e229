"""Flags that several commands have, and how the commands read them.

A flag for something that a file of settings can say too is absent from the options when it was not given, so that an
explicit one can be told from a default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..data.formats import IMAGES_ARE
from ..data.labels import LABELS_ARE
from ..data.normalize import NORMALIZATIONS
from ..settings.choices import METHODS
from ..settings.config import Config
from ..settings.families import FAMILIES
from ..settings.fields import Kind, alternatives, kinds
from ..settings.presets import preset_names
from .published import settings_of

if TYPE_CHECKING:
    from ..data import Normalization
    from ..data.distilled import DistilledDataset

_STAGE_TITLES = {
    "data": "data and network",
    "scores": "difficulty scores",
    "experts": "experts (FIEx)",
    "distill": "distillation (FIEm)",
    "evaluate": "evaluation",
    "run": "how it runs",
}
RUN_STAGES = tuple(_STAGE_TITLES)
"""Every stage that a setting may belong to: those of a whole run, in the order of its help."""

_METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def add_settings(
    parser: argparse.ArgumentParser, stages: Sequence[str], *, but: Sequence[str] = (), unused: Sequence[str] = ()
) -> None:
    """A file, a preset, and a flag for every setting of these stages.

    Args:
        but: settings without a flag.
        unused: settings that change nothing here. They are read, since command lines have them, but the help leaves
            them out.
    """
    parser.add_argument("--config", metavar="FILE", help="YAML settings, ours or the reference's")
    parser.add_argument(
        "--family",
        metavar="NAME",
        help=f"whose program the words with underscores are for: {', '.join(FAMILIES)} (default: recognised)",
    )
    parser.add_argument("--preset", metavar="NAME", help=f"published settings: {alternatives(preset_names())}")
    if "distill" not in stages:
        # The method and the IPC choose the defaults of the other settings.
        add_field(parser, "method", text=f"use the defaults of {alternatives(METHODS)} (default: {Config.method})")
        add_field(parser, "ipc", text=f"use the defaults for this many images per class (default: {Config.ipc})")
    parser.epilog = (
        "Learning rates are per iteration, epochs count from 0, ratios are fractions from 0 to 1; config.yaml in the "
        "run's folder says what was used."
    )
    add_place(parser)
    add_fields(parser, stages, but=but, unused=unused)


def add_place(parser: argparse.ArgumentParser) -> None:
    """The machine's part: where data sets are, the device, and whether to show progress."""
    parser.add_argument("--data-dir", metavar="DIR", default=argparse.SUPPRESS, help="where data sets are")
    parser.add_argument("--download", action="store_true", help="fetch the data set if it is not there yet")
    parser.add_argument("--device", default=argparse.SUPPRESS, help="auto, cpu, cuda or cuda:N (default: auto)")
    add_quiet(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    """Trackers of a run."""
    parser.add_argument(
        "--log",
        action="append",
        default=[],
        metavar="NAME",
        help="tensorboard or wandb: send the numbers there too, through its own package; may be repeated",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """What a distilled set does not say itself; :func:`reading` gives all but what :func:`whitening` does."""
    parser.add_argument("--lr", type=float, metavar="X", help="learning rate (default: the distilled one)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--whitening",
        metavar="NAME",
        help=f"{alternatives(NORMALIZATIONS)}: how the set was normalised, where it does not say so itself, as "
        "published ones do not; pixels are normalised so",
    )
    for name in NORMALIZATIONS:
        text = f"the same as --whitening {name}"
        how.add_argument(f"--{name}", dest="whitening", action="store_const", const=name, help=text)
    how.add_argument(
        "--normalize",
        metavar="FILE",
        help="as this file says, which holds a normalisation: saved by pad_fast, a distilled set with its own, or mean "
        "and std or a ZCA in .npz or .pt (docs/distilled.md)",
    )
    parser.add_argument(
        "--labels", metavar="KIND", help=f"soft labels are {alternatives(LABELS_ARE)} (default: recognised)"
    )
    parser.add_argument("--images", metavar="KIND", help=f"images are {alternatives(IMAGES_ARE)} (default: recognised)")


def reading(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of :func:`pad_fast.load`."""
    return {"lr": options.lr, "labels_are": options.labels, "images_are": options.images}


def whitening(options: argparse.Namespace, distilled: DistilledDataset) -> str | Normalization | None:
    """The normalisation that was named, or what its file says of images like those of the set."""
    if options.normalize is None:
        return options.whitening
    from ..data.normalization_files import load_normalization

    return load_normalization(options.normalize, shape=distilled.images.shape[1:])


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """`--quiet`, which :func:`progress` reads."""
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_fields(
    parser: argparse.ArgumentParser, stages: Sequence[str], *, but: Sequence[str] = (), unused: Sequence[str] = ()
) -> None:
    """A flag for every setting of these stages, in a group each; arguments as for :func:`add_settings`."""
    groups = {stage: parser.add_argument_group(_STAGE_TITLES[stage]) for stage in stages}
    for item in fields(Config):
        if item.metadata["stage"] in groups and item.name not in but:
            text = argparse.SUPPRESS if item.name in unused else None
            add_field(groups[item.metadata["stage"]], item.name, text=text)


def add_field(
    group: argparse._ActionsContainer, name: str, *, text: str | None = None, default: Any = argparse.SUPPRESS
) -> None:
    """The flag of one setting.

    Args:
        group: a parser or a group of one.
        text: help in place of the setting's own.
        default: the value where the flag is not given, for commands that read no file.
    """
    item, kind = Config.__dataclass_fields__[name], kinds(Config)[name]
    flag = "--" + name.replace("_", "-")
    if text is None:
        text = with_default(item.metadata["help"], item.default)
    text = text.replace("%", "%%")
    if kind.base is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        return
    # The config refuses what is none of the choices, and names the nearest.
    metavar = "NAME" if item.metadata["choices"] else _METAVARS[kind.base]
    group.add_argument(flag, type=_reader(kind), default=default, metavar=metavar, help=text)


def with_default(text: str, value: Any) -> str:
    """The help of a setting, and what it is where nobody gives it."""
    return f"{text} (default: {'none' if value is None else value})"


def _reader(kind: Kind) -> Callable[[str], Any]:
    """The function that makes a value of a word on the command line."""

    def read(text: str) -> Any:
        if kind.optional and text.lower() == "none":
            return None
        return text if text in kind.words else kind.base(text)

    read.__name__ = kind.base.__name__  # argparse names the type in its error message
    return read


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were on the command line."""
    return _present(options, *(item.name for item in fields(Config)))


def place(options: argparse.Namespace) -> dict[str, Any]:
    """Data folder and device, where they were on the command line."""
    return _present(options, "data_dir", "device")


def _present(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def progress(options: argparse.Namespace) -> Any:
    """The progress that the options ask for."""
    from ..runtime.progress import Progress

    return Progress(quiet=options.quiet)


def run_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments that `distill` and `sweep` share."""
    return {
        "config": settings_of(options),
        "preset": options.preset,
        "out": options.out,
        "download": options.download,
        "overwrite": options.overwrite,
        "progress": progress(options),
        **place(options),
        **given(options),
    }
