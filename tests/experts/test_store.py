"""Expert stores: what is kept and how exactly, claims, damaged and foreign files, the reference's replay buffers."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch

from pad_fast import ConvNet, ExpertStore
from pad_fast.errors import ConfigError, StoreError
from pad_fast.experts import convert_experts, describe_store, examine, expert_file
from pad_fast.experts import store as store_module
from pad_fast.experts.snapshots import Snapshots
from pad_fast.models import FlatNetwork
from pad_fast.runtime import files, tensor_files
from pad_fast.runtime.progress import Progress
from pad_fast.settings.choices import STORAGES
from pad_fast.settings.snapshot_ranges import format_snapshots, parse_snapshots

from ..support.golden import golden_path

P, EPOCHS = 11, 3
QUIET = Progress(quiet=True)
METADATA = {"model": "ConvNetD1W8", "fingerprint": "abc", "curriculum": {"initial_ratio": 0.75}, "seed": 0}


def expert(number: int) -> torch.Tensor:
    return torch.randn(EPOCHS + 1, P, generator=torch.Generator().manual_seed(number))


def make(folder, experts: int = 3, *, kept=None, storage: str = "float32", **changed) -> ExpertStore:
    store = ExpertStore.create(
        folder, parameter_count=P, epochs=EPOCHS, kept=kept, storage=storage, metadata={**METADATA, **changed}
    )
    for number in range(len(store), experts):
        assert store.append(expert(number)[list(store.kept)], {"loss": number / 4}) == number
    return store


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_in_every_way_of_asking(tmp_path):
    make(tmp_path)
    store = ExpertStore.open(tmp_path)
    assert (len(store), store.epochs, store.parameter_count) == (3, EPOCHS, P)
    for number in range(3):
        for epoch in range(EPOCHS + 1):
            assert torch.equal(store.snapshot(number, epoch), expert(number)[epoch])
    assert torch.equal(store.snapshot(1, -1), expert(1)[-1])
    assert torch.equal(store.snapshot(1, -EPOCHS - 1), expert(1)[0])
    assert "3 experts x 4 snapshots x 11 parameters" in repr(store)
    assert names(tmp_path) == [*(f"expert_0000{i}.safetensors" for i in range(3)), "store.json"]


def test_a_snapshot_is_the_callers_own(tmp_path):
    store = make(tmp_path, 1)
    store.snapshot(0, 1).zero_()
    assert torch.equal(store.snapshot(0, 1), expert(0)[1])
    loaded = ExpertStore.from_replay_buffers(written_buffer(tmp_path / "replay", store).parent)
    loaded.snapshot(0, 1).zero_()
    assert torch.equal(loaded.snapshot(0, 1), expert(0)[1])


def written_buffer(folder, store, **arguments):
    folder.mkdir(exist_ok=True)
    return store.write_replay_buffer(folder / "replay_buffer_0.pt", [torch.Size([2, 5]), torch.Size([1])], **arguments)


@pytest.mark.parametrize(("number", "epoch"), [(3, 0), (-1, 0), (0, EPOCHS + 1), (0, -EPOCHS - 2)])
def test_snapshots_that_do_not_exist(tmp_path, number, epoch):
    with pytest.raises(StoreError, match=r"does not exist; .* (holds 3|epochs 0\.\.3)"):
        make(tmp_path).snapshot(number, epoch)


def test_create_continues_what_is_there(tmp_path):
    make(tmp_path, 2)
    store = make(tmp_path, 4)
    assert len(store) == 4 and torch.equal(store.snapshot(3, 2), expert(3)[2])
    assert len(ExpertStore.open(tmp_path)) == 4


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": "ConvNetD2W8"}, "model = 'ConvNetD1W8', but 'ConvNetD2W8'"),
        ({"curriculum": {"initial_ratio": 0.5}}, "curriculum = {'initial_ratio': 0.75}"),
        ({"seed": 1}, "seed = 0, but 1"),
        ({"fingerprint": "xyz"}, "fingerprint = 'abc'"),
    ],
)
def test_other_settings_are_refused(tmp_path, changed, named):
    make(tmp_path, 1)
    before = (tmp_path / "store.json").read_bytes()
    with pytest.raises(StoreError, match=named):
        make(tmp_path, 2, **changed)
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]
    assert (tmp_path / "store.json").read_bytes() == before


def test_another_shape_is_refused_and_another_version_is_not(tmp_path):
    make(tmp_path, 1, pad_fast="0.0.1")
    assert len(make(tmp_path, 2, pad_fast="0.0.2")) == 2
    for shape in ({"parameter_count": P + 1, "epochs": EPOCHS}, {"parameter_count": P, "epochs": EPOCHS + 1}):
        with pytest.raises(StoreError, match=r"(parameter_count = 11|epochs = 3), but"):
            ExpertStore.create(tmp_path, metadata=METADATA, **shape)


@pytest.mark.parametrize(
    ("snapshots", "named"),
    [
        (torch.zeros(EPOCHS, P), r"shape \[3, 11\]; this store takes \[4, 11\]"),
        (torch.zeros(EPOCHS + 1, P + 1), "shape"),
        (torch.full((EPOCHS + 1, P), float("nan")), "NaN or infinite.*learning rate"),
        (torch.full((EPOCHS + 1, P), float("inf")), "NaN or infinite"),
    ],
)
def test_unusable_experts_are_refused(tmp_path, snapshots, named):
    store = make(tmp_path, 1)
    with pytest.raises(StoreError, match=named):
        store.append(snapshots)
    assert len(store) == 1 and len(ExpertStore.open(tmp_path)) == 1
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]


def test_one_nan_among_many_is_found(tmp_path):
    bad = expert(5)
    bad[2, 7] = float("nan")
    with pytest.raises(StoreError, match="NaN"):
        make(tmp_path, 1).append(bad)


def test_append_is_atomic(tmp_path, monkeypatch):
    store = make(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(StoreError, match=r"expert_00001\.safetensors: No space left"):
        store.append(expert(1))
    monkeypatch.undo()
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]
    assert len(store) == 1
    assert store.append(expert(1)) == 1
    assert torch.equal(ExpertStore.open(tmp_path).snapshot(1, 3), expert(1)[3])


def test_leftovers_of_a_killed_run_are_not_experts(tmp_path):
    make(tmp_path, 1)
    (tmp_path / ".expert_00001.safetensors.x1.part").write_bytes(b"half")
    assert len(ExpertStore.open(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["short", "empty", "words", "foreign"])
def test_damaged_experts_are_named(tmp_path, damage):
    from safetensors.torch import save

    make(tmp_path)
    path = tmp_path / "expert_00001.safetensors"
    content = {"short": path.read_bytes()[:-5], "empty": b"", "words": b"words" * 20, "foreign": None}[damage]
    path.write_bytes(content if content is not None else save({"weight": torch.zeros(3)}))
    with pytest.raises(StoreError, match=r"expert_00001\.safetensors is damaged .*delete it to train this expert"):
        ExpertStore.open(tmp_path)


def test_expert_of_another_shape_is_named(tmp_path):
    make(tmp_path)
    make(tmp_path / "other", kept=[0, 3])
    shutil.copy(tmp_path / "other" / "expert_00002.safetensors", tmp_path)
    with pytest.raises(StoreError, match=r"expert_00002.*damaged \(snapshots is F32 \[2, 11\].*says F32 \[4, 11\]"):
        ExpertStore.open(tmp_path)


def test_a_gap_is_named_and_filled(tmp_path):
    make(tmp_path)
    before = (tmp_path / "expert_00001.safetensors").read_bytes()
    (tmp_path / "expert_00001.safetensors").unlink()
    with pytest.raises(StoreError, match=r"expert_00001\.safetensors is missing while expert_00002"):
        ExpertStore.open(tmp_path)
    store = ExpertStore.create(tmp_path, parameter_count=P, epochs=EPOCHS, metadata=METADATA)
    assert store.missing(4) == [1, 3] and torch.equal(store.snapshot(2, 1), expert(2)[1])
    with pytest.raises(StoreError, match="expert 1 does not exist"):
        store.snapshot(1, 0)
    assert store.append(expert(1), {"loss": 0.25}) == 1
    assert (tmp_path / "expert_00001.safetensors").read_bytes() == before
    assert len(ExpertStore.open(tmp_path)) == 3


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a pad_fast expert store"),
        ('{"format": "other"}', "not a pad_fast expert store"),
        (json.dumps({"format": store_module.FORMAT}), "checksum of its description"),
        (json.dumps(tensor_files.seal({"format": store_module.FORMAT})), "damaged"),
        (
            json.dumps(tensor_files.seal({"format": store_module.FORMAT, "parameter_count": None, "epochs": 1})),
            "damaged",
        ),
    ],
)
def test_store_descriptions_that_cannot_be_used(tmp_path, content, named):
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=named):
        ExpertStore.open(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="neither store.json nor"):
        ExpertStore.open(tmp_path)
    with pytest.raises(StoreError, match="neither store.json nor"):
        ExpertStore.open(tmp_path / "missing")
    with pytest.raises(StoreError, match="no replay_buffer"):
        ExpertStore.from_replay_buffers(tmp_path)


def test_replay_buffers_further_down_are_pointed_out(tmp_path):
    nested = tmp_path / "CIFAR10" / "ConvNet"
    nested.mkdir(parents=True)
    shutil.copy(golden_path("replay_buffer_0.pt"), nested)
    with pytest.raises(StoreError, match="CIFAR10.ConvNet"):
        ExpertStore.open(tmp_path)
    assert len(ExpertStore.open(nested)) == 2


def test_first_is_a_view(tmp_path):
    store = make(tmp_path)
    view = store.first(2)
    assert len(view) == 2 and len(store) == 3 and len(store.first(9)) == 3
    assert torch.equal(view.snapshot(1, 2), store.snapshot(1, 2))
    with pytest.raises(StoreError, match="expert 2 does not exist"):
        view.snapshot(2, 0)
    with pytest.raises(StoreError, match="a part of the experts.*to read from"):
        view.append(expert(2))
    assert names(tmp_path) == [*(f"expert_0000{i}.safetensors" for i in range(3)), "store.json"]


def test_golden_replay_buffer(tmp_path):
    source = golden_path("replay_buffer_0.pt")
    shutil.copy(source, tmp_path)
    theirs = torch.load(source, weights_only=True)
    store = ExpertStore.open(tmp_path)
    network = FlatNetwork(ConvNet(width=8, depth=3, classes=10))
    assert (len(store), store.epochs, store.parameter_count) == (2, 3, network.parameter_count)
    store.require({"parameter_count": network.parameter_count, "model": "anything", "fingerprint": "x"})
    for number, trajectory in enumerate(theirs):
        for epoch, parameters in enumerate(trajectory):
            flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
            assert float(flat.norm()) > 0.1
            assert torch.equal(store.snapshot(number, epoch), flat)

    out = store.write_replay_buffer(tmp_path / "out" / "replay_buffer_0.pt", network.shapes)
    ours = torch.load(out, weights_only=True)
    assert [len(trajectory) for trajectory in ours] == [len(trajectory) for trajectory in theirs]
    for one, other in zip(sum(ours, []), sum(theirs, []), strict=True):
        assert [p.shape for p in one] == [p.shape for p in other]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    again = ExpertStore.from_replay_buffers(out.parent)
    assert torch.equal(again.snapshot(1, 2), store.snapshot(1, 2))


def test_replay_buffers_are_read_in_numerical_order(tmp_path):
    store = make(tmp_path / "store", 3)
    folder = tmp_path / "replay"
    for number, name in ((0, 2), (1, 10), (2, 1)):
        written_buffer(folder, store, experts=[number]).rename(folder / f"replay_buffer_{name}.pt.tmp")
        (folder / f"replay_buffer_{name}.pt.tmp").rename(folder / f"replay_buffer_{name}.pt")
    loaded = ExpertStore.open(folder)
    assert [torch.equal(loaded.snapshot(i, 1), expert(j)[1]) for i, j in ((0, 2), (1, 0), (2, 1))] == [True] * 3


def test_replay_buffers_are_read_only_and_of_one_network(tmp_path):
    shutil.copy(golden_path("replay_buffer_0.pt"), tmp_path)
    store = ExpertStore.open(tmp_path)
    with pytest.raises(StoreError, match="read only"):
        store.append(torch.zeros(store.epochs + 1, store.parameter_count))
    with pytest.raises(StoreError, match=r"2,730 parameters, but the network has 320,010"):
        store.require({"parameter_count": 320_010})
    torch.save([[[torch.zeros(3)], [torch.zeros(3)]]], tmp_path / "replay_buffer_1.pt")
    with pytest.raises(StoreError, match=r"different \[snapshots, parameters\]"):
        ExpertStore.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "hold no trajectory"),
        ([[]], "not a replay buffer"),
        ([[[]]], "not a replay buffer"),
        ({"state": torch.zeros(3)}, "not a replay buffer"),
        (torch.tensor(3.0), "not a replay buffer"),
        ([[[1.0, 2.0]]], "not a replay buffer"),
    ],
)
def test_files_that_are_no_replay_buffer(tmp_path, content, named):
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(StoreError, match=named):
        ExpertStore.open(tmp_path)


def test_replay_buffers_with_nan_are_refused_when_they_are_read(tmp_path):
    torch.save([[[torch.tensor([1.0, 2.0])], [torch.tensor([1.0, float("nan")])]]], tmp_path / "replay_buffer_0.pt")
    store = ExpertStore.open(tmp_path)
    assert store.snapshot(0, 0).tolist() == [1.0, 2.0]
    with pytest.raises(StoreError, match=r"replay_buffer_0\.pt contains NaN"):
        store.snapshot(0, 1)


def test_truncated_replay_buffer(tmp_path):
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(golden_path("replay_buffer_0.pt").read_bytes()[:50_000])
    with pytest.raises(StoreError, match=r"replay buffer .*replay_buffer_0\.pt cannot be read"):
        ExpertStore.open(tmp_path)


def test_replay_buffer_of_another_network(tmp_path):
    with pytest.raises(StoreError, match="shapes hold 10 parameters, the experts 11"):
        make(tmp_path, 1).write_replay_buffer(tmp_path / "x.pt", [torch.Size([10])])


# -- which snapshots are kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("all", range(8)),
        ("0:3,-1", [0, 1, 2, 7]),
        ("5, 2:4", [2, 3, 5]),
        (":", range(8)),
        ("-3:", [5, 6, 7]),
        (":-6", [0, 1]),
        ("7", [7]),
    ],
)
def test_keep_is_read_and_written(text, kept):
    assert parse_snapshots(text, 7) == tuple(kept)
    assert parse_snapshots(format_snapshots(kept), 7) == tuple(kept)


@pytest.mark.parametrize("text", ["", "8", "-9", "3:3", "5:2", "0:9", "a", "1;2", "0:2:1", "plan"])
def test_keep_that_makes_no_sense(text):
    with pytest.raises(ConfigError, match="keep is "):
        parse_snapshots(text, 7)


@pytest.mark.parametrize("storage", STORAGES)
def test_only_what_was_kept_can_be_read(tmp_path, storage):
    store = make(tmp_path, kept=[1, 3], storage=storage)
    for each in (store, ExpertStore.open(tmp_path)):
        assert each.kept == (1, 3) and each.epochs == EPOCHS and each.facts(2) == {"loss": 0.5}
        assert torch.allclose(each.snapshot(2, -1), expert(2)[3], rtol=1e-2, atol=1e-2)
        with pytest.raises(StoreError, match=r"snapshot 2 was not kept: .* keeps 1,3 of 0\.\.3"):
            each.snapshot(2, 2)
        with pytest.raises(StoreError, match="snapshot 0 was not kept"):
            each.require_snapshots([1, 3, 0])
        with pytest.raises(StoreError, match="snapshot 0 was not kept"):
            each.write_replay_buffer(tmp_path / "x.pt", [torch.Size([P])])
    with pytest.raises(StoreError, match="kept = '1,3', but '0:4'"):
        make(tmp_path, 4, storage=storage)
    with pytest.raises(StoreError, match=r"shape \[4, 11\]; this store takes \[2, 11\]"):
        store.append(expert(3))


def test_a_full_store_and_a_sparse_one_are_not_taken_for_each_other(tmp_path):
    make(tmp_path)
    with pytest.raises(StoreError, match="kept = '0:4', but '0,3'"):
        make(tmp_path, kept=[0, 3])
    with pytest.raises(StoreError, match="storage = 'float32', but 'float16'"):
        make(tmp_path, storage="float16")
    for wrong in ([], [4], [-1]):
        with pytest.raises(ConfigError, match="snapshots to keep"):
            make(tmp_path / "new", kept=wrong)
    with pytest.raises(ConfigError, match="storage is 'float8'"):
        make(tmp_path / "new", storage="float8")
    assert not (tmp_path / "new").exists()


# -- reduced precision ----------------------------------------------------------------------------------------------


def trajectory(size: int = 5000) -> torch.Tensor:
    """Weights like a network's: of very different sizes, some zero, moving a little each epoch."""
    draws = torch.Generator().manual_seed(3)
    start = torch.randn(size, generator=draws) * torch.logspace(-9, 1, size)
    start[::7] = 0
    moves = torch.randn(EPOCHS, size, generator=draws) * 0.01
    return torch.cat([start[None], start + moves.cumsum(0)])


def stored(folder, storage: str, kept=None) -> ExpertStore:
    values = trajectory()
    store = ExpertStore.create(
        folder, parameter_count=values.shape[1], epochs=EPOCHS, kept=kept, storage=storage, metadata={}
    )
    store.append(values[list(store.kept)])
    return ExpertStore.open(folder)


def test_the_error_of_float16_is_what_the_docs_say(tmp_path):
    store, values = stored(tmp_path, "float16"), trajectory()
    for epoch in range(EPOCHS + 1):
        error = (store.snapshot(0, epoch) - values[epoch]).abs()
        bound = torch.maximum(values[epoch].abs() * 2**-11, torch.full_like(error, 2**-25))
        assert bool((error <= bound).all()) and float((error / bound).max()) > 0.9, "the bound is not tight"
    assert float((store.snapshot(0, 3) != values[3]).float().mean()) > 0.5


@pytest.mark.parametrize("kept", [None, [1, 2, 3]])
def test_the_error_of_changes_is_what_the_docs_say(tmp_path, kept):
    store, values = stored(tmp_path, "bfloat16-delta", kept), trajectory()
    first = store.kept[0]
    assert torch.equal(store.snapshot(0, first), values[first])
    for epoch in store.kept[1:]:
        error = (store.snapshot(0, epoch) - values[epoch]).abs()
        # One rounding of the difference before it is stored, one when it is added.
        rounding = 2**-24 * (values[epoch].abs() + (values[epoch] - values[first]).abs())
        bound = (values[epoch] - values[first]).abs() * 2**-8 + rounding
        assert bool((error <= bound * 1.001).all()), epoch
        assert float((error / bound).max()) > 0.9, "the bound is not tight"


def test_weights_that_float16_cannot_hold_are_refused(tmp_path):
    store = make(tmp_path, 1, storage="float16")
    large = expert(1)
    large[2, 3] = 1e5
    with pytest.raises(StoreError, match=r"weights up to 1e\+05, more than float16 holds; use storage float32"):
        store.append(large)
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]


def test_a_pair_of_snapshots_costs_the_bytes_of_two(tmp_path, monkeypatch):
    read = []
    original = os.preadv
    monkeypatch.setattr(expert_file.os, "preadv", lambda *a: read.append(original(*a)) or read[-1])
    for storage, factor in (("float32", 8), ("float16", 4), ("bfloat16-delta", 8)):
        store = stored(tmp_path / storage, storage)
        read.clear()
        store.snapshot(0, 1), store.snapshot(0, 3)
        assert sum(read) == factor * store.parameter_count, storage


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["float32", "bfloat16-delta"])
def test_a_flipped_bit_anywhere_is_found_and_named(tmp_path, storage):
    make(tmp_path, storage=storage)
    path = tmp_path / "expert_00001.safetensors"
    sound = path.read_bytes()
    draws = torch.Generator().manual_seed(0)
    for position, bit in enumerate(torch.randint(8, (len(sound),), generator=draws).tolist()):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << bit
        path.write_bytes(damaged)
        findings = list(examine(tmp_path))
        assert [f.expert for f in findings if f.problem] == [1], f"bit {bit} of byte {position}"
        assert "expert_00001.safetensors is damaged" in str(findings[1].problem)
    path.write_bytes(sound)
    assert not any(finding.problem for finding in examine(tmp_path))


def test_a_flipped_bit_in_the_description_of_the_store_is_found(tmp_path):
    make(tmp_path, 1)
    path = tmp_path / "store.json"
    sound = path.read_bytes()
    for position in range(len(sound)):
        for bit in (0, 5):
            damaged = bytearray(sound)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=r"store\.json"):
                ExpertStore.open(tmp_path)


def test_damaged_weights_are_never_handed_out(tmp_path):
    make(tmp_path)
    path = tmp_path / "expert_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-4 * P - 1] ^= 4  # the last byte of the last but one snapshot
    path.write_bytes(content)
    store = ExpertStore.open(tmp_path)
    for epoch in (0, 1, 3):
        assert torch.equal(store.snapshot(1, epoch), expert(1)[epoch])
    with pytest.raises(StoreError, match=r"expert_00001\.safetensors is damaged \(row 2 of 4"):
        store.snapshot(1, 2)
    (problem,) = [finding.problem for finding in examine(tmp_path) if finding.problem]
    assert "the bytes of snapshot 2 have changed" in problem
    assert torch.equal(store.snapshot(2, 2), expert(2)[2])


def test_a_file_that_shrinks_while_it_is_open(tmp_path):
    store = make(tmp_path)
    path = tmp_path / "expert_00001.safetensors"
    os.truncate(path, path.stat().st_size - 9)
    with pytest.raises(StoreError, match="become shorter"):
        store.snapshot(1, 3)
    path.unlink()
    with pytest.raises(StoreError, match=r"cannot read expert .*expert_00001"):
        store.snapshot(1, 0)


def test_the_sound_experts_of_a_damaged_store_stay_usable(tmp_path):
    make(tmp_path, 5)
    (tmp_path / "expert_00001.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "expert_00003.safetensors").unlink()
    with pytest.raises(StoreError, match=r"expert_00001.*damaged.*and 1 more experts: `pad-fast experts verify"):
        ExpertStore.open(tmp_path)
    with pytest.raises(StoreError, match=r"expert_00001.*damaged"):
        ExpertStore.create(tmp_path, parameter_count=P, epochs=EPOCHS, metadata=METADATA)
    store = ExpertStore.open(tmp_path, sound_only=True)
    assert [torch.equal(store.snapshot(i, 2), expert(j)[2]) for i, j in enumerate((0, 2, 4))] == [True] * 3
    with pytest.raises(StoreError, match="to read from"):
        store.append(expert(3))
    assert [finding.expert for finding in examine(tmp_path) if finding.problem] == [1, 3]
    text = describe_store(tmp_path)
    assert "experts      3" in text and "expert_00003.safetensors is missing" in text


def test_a_sparse_store_of_gigabytes_opens_at_once(tmp_path):
    """Opening reads headers only: the weights here are holes of a sparse file."""
    size = 10_000_000
    store = ExpertStore.create(tmp_path, parameter_count=size, epochs=1, metadata={})
    header = tensor_files.tensor_pieces({"snapshots": torch.empty(2, size)}, tensor_files.seal({"rows": [0, 0]}))
    beginning = next(header) + next(header)
    for number in range(64):
        with (tmp_path / f"expert_{number:05d}.safetensors").open("wb") as file:
            file.write(beginning)
            file.truncate(len(beginning) + 2 * 4 * size)
    before = resource.getrusage(resource.RUSAGE_SELF)
    store = ExpertStore.open(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert len(store) == 64 and store.bytes_per_expert * 64 > 5e9
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    with pytest.raises(StoreError, match="checksum"):
        store.snapshot(63, 1)


# -- claims -------------------------------------------------------------------------------------------------------


def test_a_number_belongs_to_one_writer(tmp_path):
    one, other = make(tmp_path, 1), make(tmp_path, 1)
    assert one.claim(0) is None, "it is there already"
    claim = one.claim(1)
    assert claim is not None and other.claim(1) is None
    assert other.append(expert(2)) == 2, "the lowest number that is free"
    with claim:
        one.finish(claim, expert(1))
    assert one.claim(1) is None and other.claim(1) is None
    given_back = one.claim(3)
    given_back.release()
    again = other.claim(3)
    assert again is not None
    again.release()
    again.release()
    assert names(tmp_path) == [*(f"expert_0000{i}.safetensors" for i in range(3)), "store.json"]


def test_an_error_gives_the_number_back(tmp_path):
    store = make(tmp_path, 0)
    with pytest.raises(KeyboardInterrupt), store.claim(0):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["store.json"] and store.append(expert(0)) == 0


@pytest.mark.parametrize("finishes", [True, False])
def test_waiting_for_another_writer(tmp_path, finishes):
    one, other = make(tmp_path, 0), make(tmp_path, 0)
    claim = one.claim(0)
    results = []
    waiting = threading.Thread(target=lambda: results.append(other.claim(0, wait=True)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive() and not results
    if finishes:
        one.finish(claim, expert(0))
    else:
        claim.release()
    waiting.join(10)
    assert not waiting.is_alive()
    if finishes:
        assert results == [None]
    else:
        results[0].release()
    assert names(tmp_path) == (["expert_00000.safetensors"] if finishes else []) + ["store.json"]


def test_what_a_killed_writer_leaves_is_taken_over(tmp_path):
    make(tmp_path, 0)
    context = multiprocessing.get_context("fork")
    claimed = context.Event()

    def claim_and_hang():
        claim = ExpertStore.open(tmp_path).claim(0)
        os.write(claim._handle, b"half an expert")
        claimed.set()
        signal.pause()

    process = context.Process(target=claim_and_hang)
    process.start()
    assert claimed.wait(10)
    store = ExpertStore.open(tmp_path)
    assert store.claim(0) is None
    process.kill()
    process.join()
    assert names(tmp_path) == [".expert_00000.safetensors.part", "store.json"]
    assert store.append(expert(0)) == 0
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]
    assert torch.equal(ExpertStore.open(tmp_path).snapshot(0, 2), expert(0)[2])


def test_a_full_disk(tmp_path):
    """A real refusal by the system: files of this process may not grow beyond a limit."""
    make(tmp_path, 1)
    script = (
        "import resource, sys, torch; from pad_fast import ExpertStore\n"
        "store = ExpertStore.open(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "store.append(torch.ones(4, 11))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "expert_00001.safetensors: File too large. What is finished stays" in done.stderr
    assert names(tmp_path) == ["expert_00000.safetensors", "store.json"]
    assert make(tmp_path, 2).snapshot(1, 3).tolist() == expert(1)[3].tolist()


# -- other forms ---------------------------------------------------------------------------------------------------


def test_conversion_to_replay_buffers_and_back(tmp_path, monkeypatch):
    monkeypatch.setattr("pad_fast.experts.convert.REPLAY_EXPERTS", 2)
    make(tmp_path / "store", 5, shapes="2x5 1")
    replay = convert_experts(tmp_path / "store", tmp_path / "replay", replay=True, progress=QUIET)
    assert names(tmp_path / "replay") == [f"replay_buffer_{i}.pt" for i in range(3)]
    assert len(replay) == 5 and [tuple(shape) for shape in replay.shapes] == [(2, 5), (1,)]
    back = convert_experts(tmp_path / "replay", tmp_path / "back", progress=QUIET)
    assert back.metadata["origin"] == "replay buffers"
    for number in range(5):
        for epoch in range(EPOCHS + 1):
            assert torch.equal(replay.snapshot(number, epoch), expert(number)[epoch])
            assert torch.equal(back.snapshot(number, epoch), expert(number)[epoch])
    again = convert_experts(tmp_path / "back", tmp_path / "again", replay=True, progress=QUIET)
    for name in names(again.folder):
        assert (again.folder / name).read_bytes() == (tmp_path / "replay" / name).read_bytes()


@pytest.mark.parametrize(("keep", "storage"), [("0:2,-1", "float32"), ("1:", "float16"), ("all", "bfloat16-delta")])
def test_a_converted_store_is_the_one_that_training_writes(tmp_path, keep, storage):
    make(tmp_path / "full")
    convert_experts(tmp_path / "full", tmp_path / "less", keep=keep, storage=storage, progress=QUIET)
    make(tmp_path / "direct", kept=parse_snapshots(keep, EPOCHS), storage=storage)
    for name in names(tmp_path / "direct"):
        assert (tmp_path / "less" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes(), name


def test_an_interrupted_conversion_is_continued(tmp_path):
    make(tmp_path / "full", 4)
    convert_experts(tmp_path / "full", tmp_path / "copy", progress=QUIET)
    whole = {name: (tmp_path / "copy" / name).read_bytes() for name in names(tmp_path / "copy")}
    (tmp_path / "copy" / "expert_00001.safetensors").unlink()
    (tmp_path / "copy" / ".expert_00003.safetensors.part").write_bytes(b"half")
    convert_experts(tmp_path / "full", tmp_path / "copy", progress=QUIET)
    (tmp_path / "copy" / ".expert_00003.safetensors.part").unlink()
    assert {name: (tmp_path / "copy" / name).read_bytes() for name in names(tmp_path / "copy")} == whole


def test_conversions_that_are_refused(tmp_path):
    make(tmp_path / "half", storage="float16")
    with pytest.raises(ConfigError, match="stored in float16, and what that has rounded is lost"):
        convert_experts(tmp_path / "half", tmp_path / "x", progress=QUIET)
    make(tmp_path / "few", kept=[0, 3], shapes="11")
    with pytest.raises(StoreError, match="snapshot 1 was not kept"):
        convert_experts(tmp_path / "few", tmp_path / "x", keep="0:2", progress=QUIET)
    with pytest.raises(StoreError, match="snapshot 1 was not kept"):
        convert_experts(tmp_path / "few", tmp_path / "x", replay=True, progress=QUIET)
    make(tmp_path / "shapeless")
    with pytest.raises(StoreError, match="which shapes"):
        convert_experts(tmp_path / "shapeless", tmp_path / "y", replay=True, progress=QUIET)


# -- reading ahead -------------------------------------------------------------------------------------------------


def test_what_was_announced_is_read_by_another_thread_and_nothing_twice(tmp_path, monkeypatch):
    store = make(tmp_path)
    reads = []
    original = ExpertStore.snapshot

    def recorded(self, number, epoch, **rest):
        reads.append((number, epoch, threading.current_thread().name.startswith("pad_fast snapshots")))
        return original(self, number, epoch, **rest)

    monkeypatch.setattr(ExpertStore, "snapshot", recorded)
    snapshots = Snapshots(store, torch.device("cpu"))
    snapshots.prefetch([(0, 1), (0, 3), (2, 1)])
    assert torch.equal(snapshots.get(0, 3), expert(0)[3]) and torch.equal(snapshots.get(0, 1), expert(0)[1])
    snapshots.prefetch([(2, 1), (1, 0)])
    assert torch.equal(snapshots.get(2, 1), expert(2)[1]) and torch.equal(snapshots.get(1, 0), expert(1)[0])
    assert torch.equal(snapshots.get(1, 2), expert(1)[2]), "not announced"
    assert reads == [(0, 1, True), (0, 3, True), (2, 1, True), (1, 0, True), (1, 2, False)]


def test_damage_shows_where_the_snapshot_is_asked_for(tmp_path):
    store = make(tmp_path)
    os.truncate(tmp_path / "expert_00001.safetensors", 50)
    snapshots = Snapshots(store, torch.device("cpu"))
    snapshots.prefetch([(0, 0), (1, 1), (2, 2)])
    assert torch.equal(snapshots.get(0, 0), expert(0)[0])
    with pytest.raises(StoreError, match=r"expert_00001.*shorter"):
        snapshots.get(1, 1)
    assert torch.equal(snapshots.get(2, 2), expert(2)[2])


MEMORY = """
import sys, torch
from pad_fast import ExpertStore
from pad_fast.experts.snapshots import Snapshots

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

store = ExpertStore.open(sys.argv[1])
snapshots = Snapshots(store, torch.device("cpu"))
wanted = [(expert, epoch) for expert in range(len(store)) for epoch in range(4)]
def use(keys):
    for first in range(0, len(keys), 2):
        snapshots.prefetch(keys[first : first + 6])
        for key in keys[first : first + 2]:
            assert float(snapshots.get(*key).sum()) != 0
use(wanted[:8])
before = resident()
use(wanted)
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the resident size from /proc")
def test_memory_does_not_grow_with_the_store(tmp_path):
    """48 snapshots of 4 MB: after all of them were used, memory is what it was after the first."""
    size = 1_000_000
    store = ExpertStore.create(tmp_path, parameter_count=size, epochs=3, metadata={})
    for number in range(12):
        store.append(torch.full((4, size), 1.0 + number))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 90 * 1024, "KiB; the store holds 187 MiB, six snapshots (23 MiB) are read ahead"
