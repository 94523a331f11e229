"""Snapshots that are kept, how exactly, and damage to their bytes."""

from __future__ import annotations

import os
import resource

import pytest
import torch

from pad_fast import ExpertStore
from pad_fast.errors import ConfigError, StoreError
from pad_fast.experts import describe_store, examine, expert_file
from pad_fast.runtime import tensor_files
from pad_fast.settings.choices import STORAGES
from pad_fast.settings.snapshot_ranges import format_snapshots, parse_snapshots

from ..support.experts import EPOCHS, METADATA, P, expert, make, names


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
