"""Settings, presets and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pad_fast import Config
from pad_fast.cli.published import translated
from pad_fast.errors import InputError
from pad_fast.runs.trackers import require_trackers
from pad_fast.runtime.device import cache_bytes, resolve_device
from pad_fast.runtime.variables import seconds_from
from pad_fast.settings.presets import preset
from pad_fast.settings.resolve import make_settings
from pad_fast.settings.snapshot_ranges import parse_snapshots
from pad_fast.settings.yaml_files import load_yaml

from .entry import Entry, in_turn


def settings(**given: Any) -> Config:
    return make_settings(preset_name=None, config=None, overrides=given).config


def of_yaml(folder: Path, text: str) -> Config:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return make_settings(preset_name=None, config=path, overrides={}).config


def of_experts(order: str) -> Config:
    return make_settings(config={"family": "pad", "sort_method": order}, program="experts").config


def of_three_files(labels: str) -> list[str]:
    words = ["--data_dir=a/images_best.pt", f"--label_dir=a/{labels}", "--lr_dir=a/lr_best.pt"]
    return translated(words, (), "evaluate")[0]


def dm(**given: Any) -> Config:
    return settings(method="dm", **given)


def limited(seconds: str) -> float:
    """The time limit of a card's check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAD_FAST_CHECK_SECONDS", seconds)
        return seconds_from("PAD_FAST_CHECK_SECONDS", 300, InputError)


SETTINGS = (
    Entry(
        "no numbers of images per class",
        lambda _: make_settings(overrides={"ipc": {"cat": 0}}),
        "give a mapping of class names to whole numbers >= 1, or a YAML file of one",
        lambda tmp: in_turn(
            lambda: make_settings(overrides={"ipc": {"cat": 2}}),
            lambda: (tmp / "numbers.yaml").write_text("cat: 2"),
            lambda: make_settings(overrides={"ipc_per_class": tmp / "numbers.yaml"}),
        ),
    ),
    Entry(
        "a setting of another type",
        lambda _: settings(iterations="many"),
        "must be int",
        lambda _: settings(iterations=10),
    ),
    Entry(
        "a choice",
        lambda _: settings(pix_init="nois"),
        "use one of .* Did you mean 'noise'",
        lambda _: settings(pix_init="noise"),
    ),
    Entry(
        "a number beyond its limit",
        lambda _: settings(ema_decay=1.0),
        r"must lie in \[0, 1\)",
        lambda _: settings(ema_decay=0.5),
    ),
    Entry(
        "an unknown setting",
        lambda _: settings(iteration=10),
        "Did you mean 'iterations'",
        lambda _: settings(iterations=10),
    ),
    Entry("images per class", lambda _: settings(ipc=0), "a whole number >= 1", lambda _: settings(ipc=1)),
    Entry("a method", lambda _: settings(method="padd"), "Did you mean 'pad'", lambda _: settings(method="pad")),
    Entry(
        "a preset",
        lambda _: preset("cifar10-ipc11"),
        "there are .*cifar10-ipc1, .* Did you mean",
        lambda _: preset("cifar10-ipc10"),
    ),
    Entry(
        "a list as config",
        lambda _: make_settings(preset_name=None, config=3, overrides={}),
        "give a YAML file, a mapping or a Config",
        lambda tmp: in_turn(
            lambda: of_yaml(tmp, "ipc: 2\n"),
            lambda: make_settings(preset_name=None, config={"ipc": 2}, overrides={}),
            lambda: make_settings(preset_name=None, config=Config(), overrides={}),
        ),
    ),
    Entry(
        "a file of no settings",
        lambda tmp: of_yaml(tmp, "- ipc\n"),
        "one `name: value` per line",
        lambda tmp: of_yaml(tmp, "ipc: 2\n"),
    ),
    Entry(
        "a file of no YAML",
        lambda tmp: of_yaml(tmp, "ipc: [\n"),
        "is not valid YAML",
        lambda tmp: of_yaml(tmp, "ipc: 2\n"),
    ),
    Entry(
        "a file that is not there",
        lambda tmp: load_yaml(tmp / "no.yaml"),
        "cannot read config",
        lambda tmp: of_yaml(tmp, "ipc: 2\n"),
    ),
    Entry(
        "two keys for one setting",
        lambda tmp: of_yaml(tmp, "iterations: 3\nIteration: 4\n"),
        "keep one",
        lambda tmp: of_yaml(tmp, "Iteration: 4\n"),
    ),
    Entry(
        "a family nobody knows",
        lambda tmp: of_yaml(tmp, "Iteration: 4\nfamily: dtm\n"),
        "use one of mtt, ftd",
        lambda tmp: of_yaml(tmp, "Iteration: 4\nfamily: datm\n"),
    ),
    Entry(
        "what a published program has and we have not",
        lambda tmp: of_yaml(tmp, "Iteration: 4\nmax_experts: 3\n"),
        "leave it out",
        lambda tmp: of_yaml(tmp, "Iteration: 4\n"),
    ),
    Entry(
        "an order of images by a score there is not",
        lambda _: of_experts("CIFAR10_Uncertainty"),
        "use one that ends in grand",
        lambda _: of_experts("CIFAR10_GraNd"),
    ),
    Entry(
        "files of two sets",
        lambda _: of_three_files("labels_7.pt"),
        "put images_X.pt, labels_X.pt and lr_X.pt into one folder",
        lambda _: of_three_files("labels_best.pt"),
    ),
    Entry(
        "an empty start range",
        lambda _: settings(min_start_epoch=4, max_start_epoch=4),
        "is not below max_start_epoch",
        lambda _: settings(min_start_epoch=3, max_start_epoch=4, sequential_generation=False),
    ),
    Entry(
        "an empty first start range",
        lambda _: settings(min_start_epoch=3, current_max_start_epoch=3, max_start_epoch=8, sequential_generation=True),
        "is not above min_start_epoch",
        lambda _: settings(min_start_epoch=3, current_max_start_epoch=4, max_start_epoch=8, sequential_generation=True),
    ),
    Entry(
        "validation between checkpoints",
        lambda _: settings(validation_fraction=0.1, validation_every=50, checkpoint_every=40),
        "a multiple of checkpoint_every",
        lambda _: settings(validation_fraction=0.1, validation_every=80, checkpoint_every=40),
    ),
    Entry(
        "soft labels without experts",
        lambda _: dm(soft_labels=True),
        "leave it out, or set it to False",
        lambda _: in_turn(lambda: dm(), lambda: dm(soft_labels=False)),
    ),
    Entry(
        "experts without experts",
        lambda _: dm(buffer_path="buffers"),
        "leave it out, or set it to 'none'",
        lambda _: in_turn(lambda: dm(), lambda: dm(buffer_path=None)),
    ),
    Entry(
        "predictions without experts",
        lambda _: dm(pix_init="samples_predicted_correctly"),
        "use real or noise",
        lambda _: in_turn(lambda: dm(pix_init="real"), lambda: dm(pix_init="noise")),
    ),
    Entry(
        "distances without experts",
        lambda _: dm(mask="loss", mask_ratio=0.5),
        "use depth, layers or none",
        lambda _: in_turn(
            lambda: dm(mask="depth", mask_ratio=0.5), lambda: dm(mask="layers", mask_ratio=0.0), lambda: dm(mask="none")
        ),
    ),
    Entry(
        "training in dm",
        lambda _: dm(inner_loop=3),
        "does not train its networks",
        lambda _: in_turn(dm, lambda: settings(method="dc", inner_loop=3)),
    ),
    Entry(
        "snapshots in words",
        lambda _: parse_snapshots("most", 9),
        "write 'all', or numbers and ranges such as '0:22,-1'",
        lambda _: in_turn(lambda: parse_snapshots("all", 9), lambda: parse_snapshots("0:22,-1", 30)),
    ),
    Entry(
        "snapshots beyond the end",
        lambda _: parse_snapshots("0:12", 9),
        "not among the snapshots 0..9",
        lambda _: parse_snapshots("0:10", 9),
    ),
    Entry(
        "a snapshot beyond the end",
        lambda _: parse_snapshots("12", 9),
        "9 epochs give 0..9",
        lambda _: parse_snapshots("9", 9),
    ),
    Entry(
        "a device",
        lambda _: resolve_device("gpu"),
        "use 'auto', 'cpu', 'cuda' or 'cuda:N'",
        lambda _: in_turn(lambda: resolve_device("auto"), lambda: resolve_device("cpu")),
    ),
    Entry(
        "another maker's device",
        lambda _: resolve_device("meta"),
        "use 'auto', 'cpu', 'cuda' or 'cuda:N'",
        lambda _: resolve_device("cpu"),
    ),
    Entry(
        "a GPU that is not there",
        lambda _: resolve_device("cuda:99"),
        "use device='auto' or 'cpu'",
        lambda _: in_turn(lambda: resolve_device("auto"), lambda: resolve_device("cpu")),
    ),
    Entry(
        "a cache",
        lambda _: cache_bytes("much", resolve_device("cpu")),
        "use a number of bytes, 0 to recompute, or 'auto'",
        lambda _: in_turn(
            *(lambda each=each: cache_bytes(each, resolve_device("cpu")) for each in ("1000", "0", "auto"))
        ),
    ),
    Entry(
        "a limit of a check",
        lambda _: limited("soon"),
        "a number of seconds, above 0",
        lambda _: limited("300"),
    ),
    Entry(
        "a tracker",
        lambda _: require_trackers(("tensorbord",)),
        "Did you mean 'tensorboard'",
        lambda _: require_trackers(()),
    ),
)
