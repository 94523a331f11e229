"""Replay buffers as the reference writes them, and stores converted from and to them."""

from __future__ import annotations

import shutil

import pytest
import torch

from pad_fast import ConvNet, ExpertStore
from pad_fast.errors import ConfigError, StoreError
from pad_fast.experts import convert_experts
from pad_fast.models import FlatNetwork
from pad_fast.settings.snapshot_ranges import parse_snapshots

from ..support.experts import EPOCHS, expert, make, names, trained_on_a_cpu, written_buffer
from ..support.golden import golden_path
from ..support.small import QUIET


def test_replay_buffers_further_down_are_pointed_out(tmp_path):
    nested = tmp_path / "CIFAR10" / "ConvNet"
    nested.mkdir(parents=True)
    shutil.copy(golden_path("replay_buffer_0.pt"), nested)
    with pytest.raises(StoreError, match="CIFAR10.ConvNet"):
        ExpertStore.open(tmp_path)
    assert len(ExpertStore.open(nested)) == 2


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


def test_a_buffer_that_holds_one_snapshot_many_times_is_named(tmp_path):
    path = trained_on_a_cpu(tmp_path / "replay_buffer_0.pt", copied=False)
    one, *others = torch.load(path, weights_only=True)[0]
    assert all(torch.equal(one[0], other[0]) for other in others), "the fault is gone: the test proves nothing"
    with pytest.raises(
        StoreError, match=r"trajectory 0 of .*replay_buffer_0\.pt holds the same weights in every.*clone"
    ):
        ExpertStore.open(tmp_path)
    trained_on_a_cpu(path, copied=True)
    store = ExpertStore.open(tmp_path)
    assert not torch.equal(store.snapshot(0, 0), store.snapshot(0, 1))
    store.require_moved(0, 0, 1)


def test_an_expert_that_stands_still_is_named_with_its_file(tmp_path):
    store = make(tmp_path / "store", 1)
    store.append(expert(1)[[0, 1, 1, 2]])
    with pytest.raises(
        StoreError, match=r"expert_00001\.safetensors holds the same .* after 1 and 2 epochs of expert 1"
    ):
        store.require_moved(1, 1, 2)
    store.require_moved(1, 0, 2)
    written_buffer(tmp_path / "replay", store)
    with pytest.raises(
        StoreError, match=r"replay_buffer_0\.pt holds the same weights after 1 and 2 epochs of expert 1"
    ):
        ExpertStore.open(tmp_path / "replay").require_moved(1, 1, 2)


def test_truncated_replay_buffer(tmp_path):
    path = tmp_path / "replay_buffer_0.pt"
    path.write_bytes(golden_path("replay_buffer_0.pt").read_bytes()[:50_000])
    with pytest.raises(StoreError, match=r"replay buffer .*replay_buffer_0\.pt cannot be read"):
        ExpertStore.open(tmp_path)


def test_replay_buffer_of_another_network(tmp_path):
    with pytest.raises(StoreError, match="shapes hold 10 parameters, the experts 11"):
        make(tmp_path, 1).write_replay_buffer(tmp_path / "x.pt", [torch.Size([10])])


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
