"""Expert stores: what is written, continued, refused, and which experts are named when they are damaged."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import torch

from pad_fast import ExpertStore
from pad_fast.errors import StoreError
from pad_fast.experts import store as store_module
from pad_fast.runtime import files, tensor_files

from ..support.experts import EPOCHS, METADATA, P, expert, make, names, written_buffer


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
    with pytest.raises(
        StoreError, match=r"expert_00002\S* is damaged .*\(snapshots is F32 \[2, 11\].*says F32 \[4, 11\]"
    ):
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
        ("[]", "damaged or no expert store of pad_fast"),
        ('{"format": "other"}', "has format 'other'; this version reads 'pad_fast experts 2'"),
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
