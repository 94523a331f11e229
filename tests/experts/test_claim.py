"""Claims: one writer for a number, however writers end, and a disk that is full."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from pad_fast import ExpertStore

from ..support.experts import expert, make, names


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
