"""Published settings against a table typed in here, and how settings from several places are put together."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pad_fast import Config
from pad_fast.errors import ConfigError
from pad_fast.settings.choices import BATCH_METHODS, METHODS, TRAJECTORY_METHODS
from pad_fast.settings.presets import method_settings, preset, preset_names
from pad_fast.settings.resolve import make_settings
from pad_fast.settings.yaml_files import to_yaml

CORRECT, REAL = "samples_predicted_correctly", "real"
# name: T, M, min start, max start, sequential (from, until iteration) or None, student batch, lr_img, lr_lr, lr_y,
#       threshold, mask ratio, initial images
PUBLISHED = {
    "cifar10-ipc1": (80, 2, 0, 4, None, None, 100, 1e-7, 5, 1.1, 0, CORRECT),
    "cifar10-ipc10": (80, 2, 0, 20, (10, 1000), 500, 100, 1e-5, 2, 1, 0.5, CORRECT),
    "cifar10-ipc50": (80, 3, 0, 40, (20, 2000), 1000, 1000, 1e-5, 2, 1, 0.25, CORRECT),
    "cifar10-ipc500": (40, 2, 40, 70, (60, 2000), 1000, 50, 1e-5, 10, 1, 0.5, CORRECT),
    "cifar10-ipc1000": (100, 2, 40, 60, None, 1000, 50, 1e-5, 10, 1, 0.5, CORRECT),
    "cifar100-ipc1": (40, 3, 0, 30, (20, 1000), 1000, 1000, 1e-5, 10, 1, 0.5, CORRECT),
    "cifar100-ipc10": (80, 2, 0, 50, (30, 2000), 1000, 1000, 1e-5, 10, 1, 0.5, CORRECT),
    "cifar100-ipc50": (80, 2, 20, 70, None, 1000, 1000, 1e-5, 10, 1, 0, REAL),
    "cifar100-ipc100": (80, 2, 30, 70, None, 1000, 50, 1e-5, 10, 1, 0.5, CORRECT),
    "tinyimagenet-ipc1": (40, 2, 0, 20, (15, 2000), 1000, 10000, 1e-4, 10, 1, 0.5, CORRECT),
    "tinyimagenet-ipc10": (40, 2, 10, 50, None, 500, 100, 1e-4, 10, 1, 0.5, CORRECT),
    "tinyimagenet-ipc50": (20, 2, 40, 70, None, 1000, 100, 1e-4, 10, 1, 0.5, CORRECT),
}


def test_every_published_cell_is_there():
    assert {name for name in preset_names() if not name.startswith("digits")} == set(PUBLISHED)
    assert {"digits-ipc1", "digits-ipc10"} <= set(preset_names())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("chosen", ["preset", "dataset and ipc"])
def test_published_cells(name, chosen):
    steps, matched, low, high, growing, batch, lr_img, lr_lr, lr_y, threshold, ratio, init = PUBLISHED[name]
    dataset, _, ipc = name.rpartition("-ipc")
    if chosen == "preset":
        config = make_settings(preset_name=name).config
    else:
        config = make_settings(dataset=dataset, ipc=int(ipc)).config
    assert (config.dataset, config.ipc) == (dataset, int(ipc))
    assert (config.syn_steps, config.expert_epochs) == (steps, matched)
    assert (config.min_start_epoch, config.max_start_epoch) == (low, high)
    assert config.sequential_generation == (growing is not None)
    if growing is not None:
        assert (config.current_max_start_epoch, config.expansion_end_epoch) == growing
    assert config.batch_syn == batch
    assert (config.lr_img, config.lr_lr, config.lr_y) == (lr_img, lr_lr, lr_y)
    assert (config.threshold, config.mask, config.mask_ratio) == (threshold, "depth", ratio)
    assert config.pix_init == init
    # The same in every cell.
    assert (config.lr_init, config.momentum_y, config.momentum_img, config.momentum_lr) == (0.01, 0.9, 0.5, 0.5)
    assert (config.iterations, config.zca, config.method, config.soft_labels) == (10_000, True, "pad", True)
    assert config.dsa == "color_crop_cutout_flip_scale_rotate"
    assert config.model == ("ConvNetD4" if dataset == "tinyimagenet" else "ConvNetD3")
    assert (config.batch_train, config.lr_expert, config.train_epochs, config.num_experts) == (256, 0.01, 100, 100)
    assert (config.expert_optimizer, config.gsam_rho, config.gsam_alpha) == ("gsam", 0.01, 0.3)
    curriculum = (config.initial_ratio, config.add_end_epoch, config.removal1_epoch, config.removal2_epoch)
    assert curriculum == (0.75, 20, 40, 60) and config.curriculum
    assert (config.removal1_ratio, config.removal2_ratio) == (0.1, 0.2)
    assert (config.eval_epochs, config.eval_networks, config.eval_batch) == (1000, 5, 128)
    assert (config.eval_momentum, config.eval_weight_decay) == (0.9, 5e-4)


def test_digits_cells():
    one, ten = make_settings(preset_name="digits-ipc1").config, make_settings(dataset="digits", ipc=10).config
    for config in (one, ten):
        assert (config.model, config.zca, config.dsa) == ("ConvNetD2W32", False, "color_crop_scale_rotate")
        assert (config.score_networks, config.score_epochs, config.score_batch, config.score_lr) == (3, 8, 64, 0.05)
        assert (config.num_experts, config.train_epochs, config.batch_train, config.lr_expert) == (20, 20, 80, 0.1)
        assert (config.add_end_epoch, config.removal1_epoch, config.removal2_epoch) == (4, 8, 12)
        assert (config.lr_lr, config.threshold) == (1e-4, 1.0)
    assert (one.syn_steps, one.expert_epochs, one.max_start_epoch, one.batch_syn) == (60, 2, 12, None)
    assert (one.mask_ratio, ten.mask_ratio) == (0.0, 0.25)
    assert (one.lr_init, one.lr_img, one.lr_y, one.iterations) == (0.05, 10.0, 0.2, 400)
    assert (ten.syn_steps, ten.expert_epochs, ten.max_start_epoch, ten.batch_syn) == (40, 4, 16, 50)
    assert (ten.lr_init, ten.lr_img, ten.lr_y, ten.iterations) == (0.1, 300.0, 0.5, 200)


@pytest.mark.parametrize("method", BATCH_METHODS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_gradient_and_distribution_matching_have_their_published_settings(name, method):
    config = make_settings(preset_name=name, method=method).config
    assert (config.method, config.uses_experts, config.zca, config.curriculum) == (method, False, False, False)
    assert (config.mask, config.pix_init, config.soft_labels, config.threshold) == ("none", "real", False, None)
    assert (config.batch_real, config.momentum_img, config.lr_init, config.batch_syn) == (256, 0.5, 0.01, None)
    assert (config.lr_img, config.iterations) == ((1.0, 20_000) if method == "dm" else (0.1, 1000))
    assert config.match_dsa == (method != "dc") and config.dsa == "color_crop_cutout_flip_scale_rotate"
    assert config.model == make_settings(preset_name=name).config.model
    digits = make_settings(method=method, ipc=12).config
    assert digits.lr_img == (10.0 if method == "dm" else 1.0) and digits.iterations == (400 if method == "dm" else 30)
    assert digits.match_dsa == config.match_dsa and digits.dsa == "color_crop_scale_rotate"
    asked = make_settings(preset_name=name, method=method, overrides={"mask": "depth"}).config
    assert (asked.mask, asked.mask_ratio) == ("depth", 0.25)


@pytest.mark.parametrize("method", TRAJECTORY_METHODS)
@pytest.mark.parametrize("name", [*PUBLISHED, "digits-ipc1", "digits-ipc10"])
def test_every_method_has_usable_settings_everywhere(name, method):
    config = make_settings(preset_name=name, method=method).config
    assert config.method == method
    assert config.gradient == ("tesla" if method == "tesla" else "exact")
    assert config.soft_labels == (method not in ("mtt", "ftd"))
    assert config.curriculum == (method == "pad")
    assert config.expert_optimizer == ("sgd" if method in ("mtt", "tesla") else "gsam")
    assert (config.ema_decay is not None) == (method == "ftd")
    if method != "pad":
        assert config.mask == "none"
    if method in ("mtt", "ftd", "tesla"):
        assert config.threshold is None and not config.sequential_generation and config.pix_init == "real"
    else:
        assert config.threshold is not None


@pytest.mark.parametrize("spelling", ["CIFAR10", "cifar-10", "Cifar_10"])
def test_a_data_set_is_known_under_every_spelling(spelling):
    config = make_settings(dataset=spelling, ipc=10).config
    assert (config.zca, config.batch_syn, config.dataset) == (True, 500, spelling)


@pytest.mark.parametrize("spelling", ["Tiny", "tiny-imagenet", "TinyImageNet"])
def test_tiny_imagenet_is_known_under_every_spelling(spelling):
    assert make_settings(dataset=spelling, ipc=50).config.model == "ConvNetD4"
    assert preset("tiny-ipc50") == preset("TinyImageNet-IPC50") == preset("tinyimagenet-ipc50")


def test_between_cells_the_smaller_one_is_taken():
    config = make_settings(dataset="cifar10", ipc=20).config
    assert (config.ipc, config.batch_syn) == (20, 500)
    assert make_settings(dataset="cifar10", ipc=5).config.threshold == 1.1
    unknown = make_settings(dataset="svhn", ipc=3).config
    assert unknown == Config(dataset="svhn", ipc=3)


@pytest.mark.parametrize("name", ["cifar10-ipc2", "cifar11-ipc10", "digits-ipc3", "cifar10", "-ipc1", ""])
def test_unknown_presets(name):
    with pytest.raises(ConfigError, match="unknown preset .*there are digits-ipc1"):
        preset(name)


def test_unknown_presets_name_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'cifar10-ipc10'\?"):
        preset("cifar10_ipc10")


def test_no_preset_or_method_has_a_later_setting():
    """An older run that does not name one had its default, and has to get it when its config.yaml is read again."""
    later = {item.name for item in fields(Config) if item.metadata["later"]}
    assert "back_off" in later
    for name in preset_names():
        assert not later & set(preset(name)), name
    for method in METHODS:
        assert not later & set(method_settings(method, "digits", 1)), method


def test_changing_a_presets_copy_changes_no_preset():
    preset("cifar10-ipc1")["lr_img"] = -1
    assert preset("cifar10-ipc1")["lr_img"] == 100


# -- files --------------------------------------------------------------------------------------------------------


def written(tmp_path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


REFERENCE_CORE = """\
dataset: CIFAR10
ipc: 10
Iteration: 4000
lr_teacher: 0.02
Momentum_y: 0.8
lr_lr: 1e-6
max_start_epoch: 35
data_path: /data/sets
device: 1
"""


def test_reference_file_keeps_the_references_defaults(tmp_path):
    """CIFAR-10 at 10 images a class is published with 10 -> 20 by 1000; a file that says nothing means 20 by 3000."""
    settings = make_settings(config=written(tmp_path, REFERENCE_CORE))
    config = settings.config
    assert (config.sequential_generation, config.current_max_start_epoch, config.expansion_end_epoch) == (
        (True, 20, 3000)
    )
    assert (config.iterations, config.lr_init, config.momentum_y, config.lr_lr) == (4000, 0.02, 0.8, 1e-6)
    assert (config.max_start_epoch, config.batch_syn, config.zca) == (35, 500, True)
    assert (settings.data_dir, settings.device) == ("/data/sets", "auto")


def test_reference_file_beats_its_defaults(tmp_path):
    text = REFERENCE_CORE + "Sequential_Generation: False\ncurrent_max_start_epoch: 7\nexpansion_end_epoch: 90\n"
    config = make_settings(config=written(tmp_path, text)).config
    assert (config.sequential_generation, config.current_max_start_epoch, config.expansion_end_epoch) == (
        (False, 7, 90)
    )


@pytest.mark.parametrize("key", ["depth_ratio: 0.5", "num_eval: 3", "Iteration: 50", "dsa_strategy: flip"])
def test_one_reference_key_is_enough(tmp_path, key):
    config = make_settings(config=written(tmp_path, f"dataset: CIFAR10\nipc: 10\n{key}\n")).config
    assert (config.current_max_start_epoch, config.expansion_end_epoch) == (20, 3000)


def test_file_of_ours_keeps_the_preset(tmp_path):
    config = make_settings(config=written(tmp_path, "dataset: CIFAR10\nipc: 10\nlr_img: 50\n")).config
    assert (config.current_max_start_epoch, config.expansion_end_epoch, config.lr_img) == (10, 1000, 50.0)
    whole = written(tmp_path, to_yaml(make_settings(preset_name="cifar10-ipc10").config))
    assert make_settings(config=whole).config == make_settings(preset_name="cifar10-ipc10").config


def test_reference_defaults_of_a_narrow_range_run_to_the_end(tmp_path):
    """A range narrower than the reference's default of 20 is simply the whole range, also after iteration 3000."""
    from pad_fast.distillation.schedule import start_epoch_limit

    text = "dataset: CIFAR10\nipc: 1\nIteration: 10000\nmax_start_epoch: 4\n"
    config = make_settings(config=written(tmp_path, text)).config
    assert (config.sequential_generation, config.max_start_epoch) == (True, 4)
    assert {start_epoch_limit(config, iteration) for iteration in range(0, 10_000, 50)} == {4}


def test_a_method_without_sequential_generation_stays_without(tmp_path):
    file = written(tmp_path, REFERENCE_CORE)
    assert not make_settings(config=file, method="mtt").config.sequential_generation
    assert make_settings(config=file, method="datm").config.sequential_generation


def test_precedence(tmp_path):
    file = written(tmp_path, "dataset: CIFAR10\nipc: 50\nlr_img: 7\nmethod: datm\n")
    settings = make_settings(config=file, dataset="digits", ipc=1, overrides={"lr_y": 4, "lr_img": 8})
    config = settings.config
    assert (config.dataset, config.ipc, config.method) == ("CIFAR10", 50, "datm")
    assert (config.lr_img, config.lr_y, config.expert_epochs, config.mask) == (8.0, 4.0, 3, "none")
    chosen = make_settings(config=file, preset_name="cifar100-ipc10", overrides={"dataset": "cifar10"}).config
    assert (chosen.dataset, chosen.ipc, chosen.max_start_epoch) == ("cifar10", 50, 50)


def test_overrides_may_use_the_references_names():
    config = make_settings(dataset="cifar10", ipc=10, overrides={"Iteration": 5, "loss_ratio": 0.3}).config
    assert (config.iterations, config.mask, config.mask_ratio) == (5, "loss", 0.3)
    assert config.expansion_end_epoch == 1000, "an override is not a file of the reference"
    with pytest.raises(ConfigError, match="override: unknown setting 'itertions'.*'iterations'"):
        make_settings(overrides={"itertions": 3})


@pytest.mark.parametrize("ipc", [0, -1, 1.5, True, "ten"])
def test_images_per_class_must_be_a_count(ipc):
    with pytest.raises(ConfigError, match="whole number >= 1"):
        make_settings(ipc=ipc)


def test_unknown_method():
    with pytest.raises(ConfigError, match="Did you mean 'datm'"):
        make_settings(method="dtam")
