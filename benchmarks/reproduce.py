"""A published setting from raw images to a tested set, as far as some hours go, beside what papers print.

    python -m benchmarks.reproduce cifar10-ipc1 --data DIR --hours 8 --json reproduce.json
    python -m benchmarks.reproduce cifar10-ipc1 --data imagefolder:DIR --hours 3 --begin-from state.safetensors
    python -m benchmarks.reproduce cifar10-ipc1 --data imagefolder:DIR --run FOLDER
    python -m benchmarks.reproduce --quick

Steps and iterations are timed once, and decide how many experts and iterations fit; FOLDER/reproduce.json keeps that.
The same command goes on where a killed one was. FOLDER/state.safetensors is enough to go on elsewhere, with new
experts: `--begin-from`, a further sitting; `--experts-of` adds those of an earlier one whose folder is still there.
`--run` takes a folder of `pad-fast distill` instead of working itself, and writes that file for it, finished or not.

The curve is of networks tested on a part of the training set that nothing else sees. Five fresh networks by each of two
recipes, ours and the reference's, are tested once when they are trained; no maximum over tests is taken.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks import harness, reproduce_costs, reproduce_state
from benchmarks.fidelity import parsed
from benchmarks.printed import printed
from benchmarks.registry import Suite
from benchmarks.report import markdown
from benchmarks.reproduce_costs import Costs, Plan
from benchmarks.reproduce_sitting import CURVE_POINTS, Sitting, held_out
from benchmarks.reproduce_state import ACCOUNT, STATE, Account, Saved
from benchmarks.reproduce_table import accuracy_table, curve, curve_table, evaluated, sets_of, words_of
from pad_fast import Difficulty, DistilledDataset, ExpertStore, ImageDataset, load_dataset
from pad_fast.distillation.state import read_checkpoint
from pad_fast.errors import PadFastError
from pad_fast.pipeline.cached import scores_path
from pad_fast.pipeline.configured import evaluation_cache
from pad_fast.runs.folder import CACHE, CHECKPOINT, TIMING, RunFolder, read_description, read_run
from pad_fast.runtime import files
from pad_fast.runtime.device import resolve_device
from pad_fast.settings.config import Config
from pad_fast.settings.presets import preset
from pad_fast.settings.resolve import make_settings

SUITE = Suite(
    name="reproduce",
    about="a published setting from raw images to a tested set",
    quick=("--quick",),
    full=None,  # hours
)

# Where the published settings say nothing: snapshots that no iteration can ask for are not stored, and a twentieth of
# the training images is held out to test on along the way.
DEFAULTS: dict[str, Any] = {"keep": "plan", "validation_fraction": 0.05}
FOLDER_PREFIX = "imagefolder:"
_PLACES = {"--data": "DIR", "--out": "FOLDER", "--run": "FOLDER", "--begin-from": STATE, "--experts-of": "DIR"}
_RECORD = "reproduce.json"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the tables are made of.

    Attributes:
        config: of the run; `published` has the setting's numbers of experts and iterations.
        losses: of every iteration.
        chosen: the iterate that was best on the held-out images; None where there are none.
        cache: folder of evaluated networks.
        partial: hours of the account leave out what was done before the run was resumed.
    """

    setting: str
    config: Config
    published: dict[str, int]
    data: ImageDataset
    note: str
    costs: Costs
    account: Account
    losses: Sequence[float]
    chosen: int | None
    sets: dict[str, DistilledDataset]
    cache: Path
    partial: bool = False


def source_of(given: str | None, dataset: str) -> tuple[str, str | None]:
    """Data set and folder as :func:`pad_fast.load_dataset` wants them; `given` is an image folder, or the folder."""
    if given is not None and given.startswith(FOLDER_PREFIX):
        return given, None
    return dataset, given


def note_of(dataset: str) -> str:
    """What to say about the pixels beside every number."""
    if not dataset.startswith(FOLDER_PREFIX):
        return f"{dataset}, as it is published"
    folder = Path(dataset.removeprefix(FOLDER_PREFIX))
    if any(path.suffix.lower() in (".jpg", ".jpeg") for path in folder.rglob("*.*")):
        return "re-encoded as JPEG, not the published pixels"
    return "an image folder"


def sit(options: argparse.Namespace, setting: str, device: torch.device) -> Outcome:
    """Work in the folder: begin, or go on."""
    saved = None if options.begin_from is None else reproduce_state.read(options.begin_from, device)
    if saved is not None and saved.setting != setting:
        raise SystemExit(f"{options.begin_from} is of {saved.setting}, not {setting}; name that setting")
    earlier = {} if saved is None else saved.settings
    overrides = {**DEFAULTS, **earlier, **options.set, "eval_networks": options.networks}
    config = make_settings(preset_name=options.setting, overrides=overrides).config
    dataset, folder = source_of(options.data, config.dataset)
    complete = load_dataset(dataset, data_dir=folder, resolution=config.resolution)
    rest, _ = held_out(config, complete)
    if saved is not None and saved.fingerprint != rest.fingerprint:
        raise SystemExit(f"{options.begin_from} was made from other images, or with another part of them held out")
    out: Path = options.out or Path("runs") / f"reproduce-{setting}"
    costs, plan = _decided(options, out, config, rest, saved, device)
    done = 0 if saved is None else saved.state.iteration
    evaluation = reproduce_costs.evaluation_seconds(
        costs,
        config,
        _sizes(rest),
        points=CURVE_POINTS if config.validation_fraction else 0,
        networks=options.networks,
        full_networks=options.full_networks,
    )
    print(markdown(*reproduce_costs.table(costs, plan, config, done=done, evaluation=evaluation)), flush=True)
    account = _account(out, plan, saved, config.seed)
    kept = [ExpertStore.open(folder) for folder in options.experts_of]
    sitting = Sitting(out, setting, config, complete, costs, plan, account, saved, device, kept)
    sitting.work()
    found = read_run(sitting.run)
    return Outcome(
        setting=setting,
        config=config,
        published={"experts": plan.published_experts, "iterations": plan.published_iterations},
        data=complete,
        note=note_of(dataset),
        costs=costs,
        account=account,
        losses=[row["loss"] for row in found.history],
        chosen=found.chosen,
        sets=sets_of(sitting.run, config),
        cache=evaluation_cache(sitting.run / CACHE),
    )


def _decided(
    options: argparse.Namespace,
    out: Path,
    config: Config,
    rest: ImageDataset,
    saved: Saved | None,
    device: torch.device,
) -> tuple[Costs, Plan]:
    """Costs and what fits: measured once, and kept with what was asked for."""
    names = ("hours", "experts", "iterations", "min_experts")
    asked = {**config.describe(), **{f"--{name.replace('_', '-')}": getattr(options, name) for name in names}}
    asked |= {"images": rest.fingerprint, "--begin-from": 0 if saved is None else saved.state.iteration}
    record = out / _RECORD
    if record.exists():
        stored = files.read_json(record, "record of a reproduction")
        different = [name for name in asked if stored["asked"].get(name) != asked[name]]
        if different:
            name = different[0]
            raise SystemExit(
                f"{out} was begun with {name} {stored['asked'].get(name)!r}, now {asked[name]!r}; repeat that command, "
                "or choose another --out"
            )
        return reproduce_costs.read(stored["costs"]), Plan(**stored["plan"])
    costs = reproduce_costs.measure(rest, config, device)
    plan = reproduce_costs.fit(
        costs,
        config,
        _sizes(rest),
        float("inf") if options.hours is None else options.hours,
        scored=saved is not None and saved.order is not None,
        least_experts=options.min_experts,
        experts=options.experts,
        iterations=options.iterations,
        done=asked["--begin-from"],
        seen=0 if saved is None else sum(sitting["experts"] for sitting in saved.account.sittings),
    )
    kept = {"asked": asked, "costs": reproduce_costs.described(costs), "plan": asdict(plan)}
    files.write_json(record, {**kept, "machine": harness.machine()})
    return costs, plan


def _sizes(data: ImageDataset) -> list[int]:
    return [len(indices) for indices in data.images_by_class()]


def _account(out: Path, plan: Plan, saved: Saved | None, seed: int) -> Account:
    """The account of this sitting, begun or gone on with."""
    path = out / ACCOUNT
    if path.exists():
        return Account.of(files.read_json(path, "account of a reproduction"), path)
    account = Account() if saved is None else saved.account
    account.path = path
    sitting = {"experts": plan.experts, "seed": seed + len(account.sittings), "iterations": 0, "hours": {}}
    account.sittings.append(sitting)
    return account


def of_run(options: argparse.Namespace, setting: str, device: torch.device) -> Outcome:
    """A run of :func:`pad_fast.distill`; its state file is written to `--out`.

    Raises:
        SystemExit: it is of another setting or other images, or not finished: then the state file is all that comes.
    """
    found = read_run(options.run)
    config = make_settings(config=dict(found.settings)).config
    base = make_settings(preset_name=options.setting, overrides=options.set).config
    if (config.ipc, config.syn_steps) != (base.ipc, base.syn_steps):
        raise SystemExit(
            f"{options.run} has IPC {config.ipc} and {config.syn_steps} student steps, {setting} {base.ipc} and "
            f"{base.syn_steps}; name the setting it was made with"
        )
    dataset, folder = source_of(options.data, config.dataset)
    complete = load_dataset(dataset, data_dir=folder, resolution=config.resolution)
    rest, _ = held_out(config, complete)
    if rest.fingerprint != read_description(options.run)["dataset_fingerprint"]:
        raise SystemExit(f"{options.run} was made from other images; name them with --data")
    account = _spent(options.run, found, config)
    out = options.out or Path("runs") / f"reproduce-{setting}"
    scores = scores_path(config, rest, options.run / CACHE)
    order = Difficulty.load(scores).order if scores.exists() else None
    reproduce_state.write(
        out / STATE, options.run, account, setting=setting, config=_whole(config, base), data=rest, order=order
    )
    print(f"written to {out / STATE}")
    if not found.finished:
        raise SystemExit(
            f"{options.run} is not finished: {out / STATE} has its state after {account.sittings[-1]['iterations']} "
            "iterations, and there is nothing to tabulate yet"
        )
    return Outcome(
        setting=setting,
        config=config,
        published={"experts": base.num_experts, "iterations": base.iterations},
        data=complete,
        note=note_of(dataset),
        costs=reproduce_costs.measure(rest, config, device),
        account=account,
        losses=[row["loss"] for row in found.history],
        chosen=found.chosen,
        sets=sets_of(options.run, config),
        cache=evaluation_cache(options.run / CACHE),
        partial=any(cost.resumed for cost in found.stages.values()),
    )


def _spent(run: Path, found: RunFolder, config: Config) -> Account:
    """The account of a run: the one beside it, where it is of ours, else from what its stages took.

    A run does not note when an iteration was: they take equally long. While it iterates, the last checkpoint says until
    when, and the costs of the stages before it since when.
    """
    if (run.parent / ACCOUNT).exists():
        return Account.of(files.read_json(run.parent / ACCOUNT, "account of a reproduction"))
    with read_checkpoint(run / CHECKPOINT) as (_, described):
        count = int(described["iteration"])
    running = (run / CHECKPOINT).stat().st_mtime - (run / TIMING).stat().st_mtime
    stages = {name: cost.seconds for name, cost in found.stages.items() if name in ("scores", "experts", "distill")}
    hours = {name: (max(0.0, running) if taken is None else taken) / 3600 for name, taken in stages.items()}
    iterating = hours.get("distill", 0.0)
    sitting = {"experts": config.num_experts, "seed": config.seed, "iterations": count, "hours": hours}
    account = Account([sitting], validation={iteration: list(values) for iteration, values in found.validation})
    even = {count * part // CURVE_POINTS for part in range(1, CURVE_POINTS + 1)}
    stops = sorted(account.validation) or sorted(even - {0})
    account.points = [(stop, account.hours - iterating + iterating * stop / count) for stop in stops]
    return account


def _whole(config: Config, base: Config) -> Config:
    """The settings of a run with the published numbers, which a further sitting may get nearer to."""
    return replace(config, num_experts=base.num_experts, iterations=base.iterations)


def content_of(outcome: Outcome, options: argparse.Namespace, device: torch.device) -> harness.Content:
    """Everything the tables show, networks trained and tested."""
    rows = evaluated(
        outcome.sets,
        outcome.data,
        outcome.config,
        cache=outcome.cache,
        device=device,
        networks=options.networks,
        full_networks=options.full_networks,
    )
    settings = _comparable(outcome.config)
    published = _comparable(make_settings(preset_name=outcome.setting).config)
    return {
        "setting": outcome.setting,
        "data": outcome.note,
        "published": outcome.published,
        "sittings": outcome.account.sittings,
        "partial_hours": outcome.partial,
        "chosen": outcome.chosen,
        "costs": reproduce_costs.described(outcome.costs),
        "curve": curve(outcome.account, outcome.losses, outcome.costs),
        "printed": printed(outcome.setting),
        "settings": settings,
        "changes": {name: value for name, value in settings.items() if value != published[name]},
        "rows": rows,
    }


def _comparable(config: Config) -> dict[str, Any]:
    """Settings that decide the numbers, but for places and what the tables say anyway."""
    settings = config.describe("data", "scores", "experts", "distill", "evaluate")
    apart = ("dataset", "order_file", "buffer_path", "keep", "num_experts", "iterations")
    return {k: v for k, v in settings.items() if k not in apart and k not in ("eval_networks", "eval_baselines")}


def typed(argv: Sequence[str]) -> str:
    """The command without the places of one machine."""
    words, last = [], ""
    for word in argv:
        if last in _PLACES:
            word = FOLDER_PREFIX + _PLACES[last] if word.startswith(FOLDER_PREFIX) else _PLACES[last]
        words.append(word)
        last = word
    return shlex.join(["python", "-m", "benchmarks.reproduce", *words])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", nargs="?", help="a preset, e.g. cifar10-ipc1")
    parser.add_argument("--data", help="folder of the data set's files, or imagefolder:DIR")
    parser.add_argument("--hours", type=float, help="for scores, experts and iterations; evaluation comes on top")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/reproduce-SETTING")
    parser.add_argument("--experts", type=int, metavar="N", help="instead of what fits")
    parser.add_argument("--iterations", type=int, metavar="N", help="of this sitting, instead of what fits")
    parser.add_argument("--min-experts", type=int, default=5, metavar="N", help="whatever they cost (default: 5)")
    parser.add_argument("--begin-from", type=Path, metavar="FILE", help="state file of the sittings before this one")
    pool = "experts of an earlier sitting, used as well; may be repeated"
    parser.add_argument("--experts-of", action="append", type=Path, default=[], metavar="DIR", help=pool)
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a run of pad-fast distill, to tabulate")
    parser.add_argument("--networks", type=int, default=5, metavar="N", help="fresh networks of a row (default: 5)")
    parser.add_argument("--full-networks", type=int, default=2, metavar="N", help="on the full data (default: 2)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings unlike the published ones")
    parser.add_argument("--device", default="auto", help="as in pad-fast distill (default: auto)")
    parser.add_argument("--quick", action="store_true", help="every path once, on tiny pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Work, evaluate, print, write."""
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(given)
    if options.quick:
        quick(options.json)
        return
    if options.setting is None:
        parser.error("name a setting, or use --quick")
    if options.run is None and options.hours is None and None in (options.experts, options.iterations):
        parser.error("give --hours, or both --experts and --iterations")
    options.set = parsed(options.set)
    command = typed(given)
    print(harness.heading(command) + "\n")
    try:
        base, device = preset(options.setting), resolve_device(options.device)
        setting = f"{base['dataset']}-ipc{base['ipc']}"
        outcome = (sit if options.run is None else of_run)(options, setting, device)
        content = content_of(outcome, options, device)
    except PadFastError as error:
        raise SystemExit(str(error)) from error
    print(show(content))
    rows = content.pop("rows")
    harness.write(options.json, "reproduce", command, rows, **content)


def show(content: harness.Content) -> str:
    """The tables as markdown."""
    return "\n".join([markdown(*accuracy_table(content)), markdown(*curve_table(content)), words_of(content)])


# The least of everything: what is left of a published setting runs in seconds.
_TINY = (
    *("model=ConvNetD1W4", "score_networks=1", "score_epochs=1", "score_batch=16", "train_epochs=6", "batch_train=16"),
    *("add_end_epoch=1", "removal1_epoch=2", "removal2_epoch=3", "syn_steps=3", "lr_img=1", "lr_y=0.1"),
    *("validation_fraction=0.25", "validation_networks=1", "eval_epochs=6", "eval_full_epochs=2"),
)
# A process that is killed as soon as its first state file is written.
_KILLED = """
import os, signal, sys
from benchmarks import reproduce, reproduce_state
write = reproduce_state.write
def write_once(*arguments, **named):
    write(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
reproduce_state.write = write_once
reproduce.main(sys.argv[1:])
"""


def pictures(folder: Path) -> Path:
    """An image folder of three colours, whose JPEG files are small and not quite alike."""
    draws = torch.Generator().manual_seed(0)
    for split, count in (("train", 16), ("test", 8)):
        for label, name in enumerate(("red", "green", "blue")):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 120, (8, 8, 3), generator=draws, dtype=torch.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels.numpy()).save(place / f"{number}.jpg", quality=95)
    return folder


def quick(result: Path | None) -> None:
    """Killed, gone on with, begun anew from the state file, and taken from its run; the result is of both sittings."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first, second, third = (folder / name for name in ("first", "second", "third"))
        data = ["cifar10-ipc1", "--data", f"{FOLDER_PREFIX}{pictures(folder / 'data')}", "--device", "cpu"]
        few = ["--networks", "2", "--full-networks", "1"]
        sized = ["--experts", "2", "--iterations", "30", "--set", *_TINY, "checkpoint_every=10"]
        begun = [*data, *few, "--out", str(first), *sized]
        killed = subprocess.run([sys.executable, "-c", _KILLED, *begun])
        if killed.returncode != -9 or not (first / STATE).exists():
            raise SystemExit(f"the run that was to be killed ended with status {killed.returncode}")
        main(begun)
        begin = ["--begin-from", str(first / STATE), "--out", str(second), "--experts-of", str(first / "experts")]
        again = ["--hours", "0.01", "--min-experts", "1", "--set", "iterations=45", "num_experts=3"]
        written = [] if result is None else ["--json", str(result)]
        main([*data, *few, *begin, *again, *written])
        main([*data, *few, "--run", str(second / "run"), "--out", str(third), "--set", *_TINY])


if __name__ == "__main__":
    main()
