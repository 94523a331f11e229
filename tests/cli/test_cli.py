"""The command line: every command, every knob a flag, errors in one line with exit status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

import pad_fast
from pad_fast.cli.main import main
from pad_fast.cli.parser import build_parser
from pad_fast.errors import DistillationStopped
from pad_fast.pipeline import Pipeline
from pad_fast.settings.config import Config

from ..support.settings import SMALL, flags

TRAINING = {
    name: SMALL[name] for name in SMALL if name.startswith(("score", "num", "train", "add", "removal", "model"))
}


def test_every_setting_is_a_flag_of_distill(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["distill", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for item in fields(Config):
        assert f"--{item.name.replace('_', '-')}" in text, item.name
        assert item.metadata["help"].split()[0] in text
    assert "(default: 0.75)" in text


def test_distill_evaluate_and_report(tmp_path, capsys):
    out = str(tmp_path / "run")
    assert main(["distill", "--out", out, "--quiet", *flags(SMALL)]) == 0
    table = capsys.readouterr().out
    assert "random real" in table and "PAD" in table and "full data" in table and "DistilledDataset(10 images" in table
    rows = tmp_path / "rows.json"
    arguments = ["--eval-networks", "1", "--eval-epochs", "2", "--no-eval-baselines", "--quiet"]
    assert main(["evaluate", out, *arguments, "--model", "MLP", "--model", "ConvNet", "--out", str(rows)]) == 0
    assert [row["model"] for row in json.loads(rows.read_text())["rows"]] == ["MLP", SMALL["model"]]
    assert "MLP" in capsys.readouterr().out
    assert main(["report", out]) == 0
    assert capsys.readouterr().out.strip().endswith("report.html")


def test_score_and_experts(tmp_path, capsys):
    scores = tmp_path / "scores.safetensors"
    chosen = {name: TRAINING[name] for name in ("model", "score_networks", "score_epochs")}
    assert main(["score", "--out", str(scores), "--quiet", *flags(chosen), "--score-method", "grand"]) == 0
    said = capsys.readouterr().out
    assert "Difficulty(grand" in said and str(scores) in said
    assert pad_fast.Difficulty.load(scores).method == "grand"
    kinds = {path.name for path in tmp_path.iterdir()}
    # The digits' classes differ in size, so there is no rectangular table.
    assert kinds == {f"scores.{kind}" for kind in ("safetensors", "csv", "json", "png", "html", "networks")}
    out = str(tmp_path / "experts")
    training = flags(TRAINING) + ["--quiet"]
    assert main(["experts", "--out", out, *training, "--order-file", str(scores)]) == 0
    assert "2 experts x 5 snapshots" in capsys.readouterr().out
    # Repeated with one more expert it continues; with another order it refuses.
    more = flags({**TRAINING, "num_experts": 3}) + ["--quiet"]
    assert main(["experts", "--out", out, *more, "--order-file", str(scores)]) == 0
    assert "3 experts" in capsys.readouterr().out
    assert main(["experts", "--out", out, *training]) == 2
    assert "were made with order" in capsys.readouterr().err


def test_looking_into_experts_checking_and_converting_them(tmp_path, capsys):
    store, replay = tmp_path / "experts", tmp_path / "replay"
    settings = {**TRAINING, "keep": "0:3,-1", "test_every": 2}
    assert main(["experts", "--out", str(store), *flags(settings), "--quiet", "--no-curriculum"]) == 0
    capsys.readouterr()
    assert main(["experts", "info", str(store)]) == 0
    text = capsys.readouterr().out
    assert "experts      2" in text and "snapshots    0:3,4 of 4 epochs" in text and "model        ConvNetD2W8" in text
    assert "% on average" in text and "in the last epoch" in text
    assert main(["experts", "verify", str(store)]) == 0
    assert capsys.readouterr().out == "2 experts, all as they were written\n"
    assert main(["experts", "convert", str(store), str(replay), "--replay", "--quiet"]) == 2
    assert "snapshot 3 was not kept" in capsys.readouterr().err
    assert main(["experts", "convert", str(store), str(tmp_path / "less"), "--keep", "0,-1", "--quiet"]) == 0
    assert "2 experts x 2 snapshots" in capsys.readouterr().out
    path = store / "expert_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["experts", "verify", str(store)]) == 2
    told = capsys.readouterr()
    assert "expert_00001.safetensors is damaged: the bytes of snapshot 4 have changed" in told.out
    assert "1 of 2 experts" in told.err


def test_a_killed_score_command_continues(tmp_path):
    """SIGKILL after the first network; the repeated command trains the others and writes the same files."""
    chosen = flags({"model": "ConvNetD2W32", "score_networks": 3, "score_epochs": 3})
    command = [sys.executable, "-m", "pad_fast.cli", "score", "--quiet", *chosen, "--out"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*command, str(undisturbed)], check=True)
    first = killed / "difficulty.networks" / "network-0000.safetensors"
    running = subprocess.Popen([*command, str(killed)])
    deadline = time.monotonic() + 120
    while not first.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    running.kill()
    running.wait()
    assert first.exists() and not (killed / "difficulty.safetensors").exists()
    stamp = first.stat().st_mtime_ns
    subprocess.run([*command, str(killed)], check=True)
    assert first.stat().st_mtime_ns == stamp, "the first network was trained again"
    written = sorted(path.relative_to(undisturbed) for path in undisturbed.rglob("*") if path.is_file())
    assert len(written) == 5 + 3
    for path in written:
        assert (killed / path).read_bytes() == (undisturbed / path).read_bytes(), path


def test_config_file_of_the_reference(tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "dataset: digits\nipc: 1\nsyn_steps: 2\nexpert_epochs: 2\nIteration: 3\nlr_teacher: 0.02\nlr_lr: 1e-05\n"
        "lr_img: 5\nlr_y: 0.5\nMomentum_y: 0.9\ndepth_ratio: 0.5\nloss_ratio: 0\nthreshold: 9\nzca: False\ndsa: True\n"
        "dsa_strategy: color_crop\nSequential_Generation: False\nmin_start_epoch: 0\nmax_start_epoch: 2\nproject: x\n"
    )
    small = {k: v for k, v in SMALL.items() if k not in ("syn_steps", "iterations", "threshold", "max_start_epoch")}
    out = tmp_path / "run"
    assert main(["distill", "--config", str(path), "--out", str(out), "--quiet", *flags(small)]) == 0
    config = pad_fast.load(out).config
    assert (config["iterations"], config["lr_init"], config["mask"], config["mask_ratio"]) == (3, 0.02, "depth", 0.5)
    assert config["dsa"] == "color_crop" and config["lr_lr"] == 1e-5
    # What the run wrote down is itself a config file that gives the same run.
    assert main(["distill", "--config", str(out / "config.yaml"), "--out", str(out)]) == 0
    assert "distill: reusing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--lr-imgg", "3"], "Did you mean '--lr-img'"),
        (["distill", "--ipc", "one"], "invalid int value"),
        (["distill", "--ipc", "0"], "ipc is 0"),
        (["distill", "--dataset", "cifar11"], "Did you mean 'cifar10'"),
        (["distill", "--config", "nothing.yaml"], "cannot read config"),
        (["distill", "--config", "torn.yaml"], "torn.yaml is not valid YAML: while parsing"),
        (["distill", "--order-file", "code.pt"], "code.pt cannot be read as a tensor file"),
        (["evaluate", "nothing"], "no distilled set"),
        (["evaluate", "nothing", "--out", "torn.yaml/rows.json"], "output folder torn.yaml is not writable"),
        (["report", "nothing"], "there is no folder"),
        (["score", "--out", "x.safetensors", "--score-method", "el3n"], "Did you mean 'el2n'"),
        (["experts"], "--out"),
        ([], "COMMAND"),
        (["distil"], "there is no command 'distil'. Did you mean 'distill'?"),
        (["experts", "inf", "store"], "Did you mean 'experts info'"),
    ],
)
def test_errors_are_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("torn.yaml").write_text("ipc: [1,\n")
    Path("code.pt").write_bytes(b"\x80\x04cos\nsystem\n")
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    errors = capsys.readouterr().err
    assert message in errors and "Traceback" not in errors and "weights_only" not in errors
    assert len([line for line in errors.splitlines() if not line.startswith("backend:")]) == 1


def test_a_stopped_run_exits_1_and_an_interrupted_one_130(tmp_path, monkeypatch, capsys):
    for error, status, said in (
        (DistillationStopped("the loss is nan"), 1, "stopped: the loss is nan"),
        (KeyboardInterrupt(), 130, "repeat the command to continue"),
    ):

        def fail(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Pipeline, "run", fail)
        assert main(["distill", "--out", str(tmp_path)]) == status
        assert said in capsys.readouterr().err


def test_bench_runs_a_suite_of_the_checkout_and_says_where_it_is_missing(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "unroll", "--help"])
    assert stop.value.code == 0 and "--points" in capsys.readouterr().out
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "benchmarks").exists()])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    assert main(["bench", "unroll"]) == 2
    assert "run this in a checkout" in capsys.readouterr().err


def test_a_suite_that_does_not_exist_is_named_with_those_that_do(capsys):
    assert main(["bench", "unrol"]) == 2
    printed = capsys.readouterr().err
    assert "there is no suite 'unrol'" in printed and "Did you mean 'unroll'?" in printed and "criteria" in printed


def test_env_names_versions_and_the_extension(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert pad_fast.__version__ in text and "extension" in text and "torch" in text


def test_the_parser_needs_no_heavy_imports():
    """`pad-fast --help` must not import torchvision, Triton, scikit-learn or Pillow."""
    code = (
        "import sys, pad_fast.cli; from pad_fast.cli.parser import build_parser; build_parser();"
        "print([m for m in ('torchvision', 'triton', 'sklearn', 'PIL', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_entry_point_is_installed():
    script = Path(sys.executable).with_name("pad-fast")
    if not script.exists():
        pytest.skip("the package is used without being installed")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert pad_fast.__version__ in done.stdout


def test_flags_parse_none_and_booleans():
    options = build_parser().parse_args(["distill", "--threshold", "none", "--no-curriculum", "--zca"])
    assert options.threshold is None and options.curriculum is False and options.zca is True
    assert not hasattr(options, "lr_img"), "what was not given must not override a file"
    options = build_parser().parse_args(["distill", "--lr-img", "auto", "--back-off"])
    assert options.lr_img == "auto" and options.back_off is True
    assert build_parser().parse_args(["distill", "--lr-img", "1e-2"]).lr_img == 0.01
    with pytest.raises(SystemExit):
        build_parser().parse_args(["distill", "--lr-y", "auto"])
