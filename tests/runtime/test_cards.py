"""What findings about a card depend on."""

from __future__ import annotations

import pytest
import torch

from pad_fast.runtime.cards import card_and_versions, digest_of_sources, file_name

pytest.importorskip("triton", reason="its version is part of it")


@pytest.mark.parametrize("driver", [13000, None])
def test_a_card_with_and_without_a_driver_that_torch_tells(monkeypatch, driver):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    if driver is None:
        monkeypatch.delattr(torch._C, "_cuda_getDriverVersion", raising=False)
    else:
        monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    found = card_and_versions(torch.device("cuda:0"))
    assert (found["card"], found["capability"], found["driver"]) == ("NVIDIA X", "9.0", str(driver or "unknown"))
    assert found["torch"] == torch.__version__


def test_names_tell_everything_apart(tmp_path):
    found = card_and_versions(torch.device("cpu"))
    names = {file_name(found), *(file_name({**found, name: "another"}) for name in found)}
    assert len(names) == len(found) + 1 and all(name.endswith(".json") for name in names)
    (tmp_path / "a.py").write_text("1")
    before = digest_of_sources([tmp_path])
    (tmp_path / "a.py").write_text("2")
    assert digest_of_sources([tmp_path]) != before == before
