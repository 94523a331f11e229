"""The result and its files."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pad_fast import DistilledDataset, load
from pad_fast.data import MeanStd, fit_zca
from pad_fast.errors import StoreError


def distilled(*, soft: bool = True, whitening="mean-std", **changed) -> DistilledDataset:
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(6, 2, 4, 4, generator=draws)
    white = {
        None: None,
        "mean-std": MeanStd(torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.3])),
        "zca": fit_zca(torch.rand(40, 2, 4, 4, generator=draws)),
    }[whitening]
    values = {
        "images": images,
        "label_logits": torch.randn(6, 3, generator=draws) if soft else None,
        "labels": torch.tensor([0, 0, 1, 1, 2, 2]),
        "lr": 0.012345678901234567,
        "whitening": white,
        "config": {"method": "pad", "model": "ConvNetD1W8", "ipc": 2, "threshold": None},
        "history": [{"iteration": 0, "loss": 0.75, "skipped": 0}, {"iteration": 1, "loss": 0.5, "skipped": 1}],
        "class_names": ("a", "b", "ç"),
    }
    return DistilledDataset(**{**values, **changed})


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("whitening", [None, "mean-std", "zca"])
def test_round_trip(tmp_path, soft, whitening):
    written = distilled(soft=soft, whitening=whitening)
    file = written.save(tmp_path / "run")
    assert sorted(p.name for p in file.parent.iterdir()) == (
        ["distilled.safetensors", "images_best.pt", "labels_best.pt", "lr_best.pt"]
    )
    for path in (file, file.parent, str(file.parent)):
        read = load(path)
        assert torch.equal(read.images, written.images) and torch.equal(read.labels, written.labels)
        if soft:
            assert torch.equal(read.label_logits, written.label_logits)
        else:
            assert read.label_logits is None
        assert read.lr == written.lr
        assert read.config == written.config and read.class_names == written.class_names
        assert list(read.history) == list(written.history)
        if whitening is None:
            assert read.whitening is None
        else:
            assert torch.equal(read.whitening.apply(read.images), written.whitening.apply(written.images))
            assert torch.equal(read.pixels(), written.pixels())
    assert file.read_bytes() == written.save(tmp_path / "again").read_bytes()


@pytest.mark.parametrize("soft", [True, False])
def test_trio_is_what_the_references_scripts_load(tmp_path, soft):
    written = distilled(soft=soft)
    written.save(tmp_path)
    images, labels, lr = (torch.load(tmp_path / f"{n}_best.pt", weights_only=True) for n in ("images", "labels", "lr"))
    assert torch.equal(images, written.images) and images.dtype == torch.float32
    assert torch.equal(labels, written.label_logits if soft else written.labels)
    assert lr.shape == () and float(lr) == written.lr
    step = torch.ones(3) - lr * torch.ones(3)  # how a script uses it; the result must stay float32
    assert step.dtype == torch.float32
    (tmp_path / "distilled.safetensors").unlink()
    read = load(tmp_path)
    assert torch.equal(read.images, images) and read.lr == written.lr and read.whitening is None
    assert torch.equal(read.targets, written.targets)
    assert torch.equal(read.labels, written.label_logits.argmax(1) if soft else written.labels)


def test_trio_of_a_script_that_saved_graphs_and_other_dtypes(tmp_path):
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64).requires_grad_()
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(torch.tensor([0, 1, 0, 1], dtype=torch.int32), tmp_path / "labels_best.pt")
    torch.save(0.02, tmp_path / "lr_best.pt")
    read = load(tmp_path)
    assert read.images.dtype == torch.float32 and not read.images.requires_grad
    assert read.labels.dtype == torch.int64 and read.label_logits is None and read.lr == 0.02
    assert read.classes == 2


def test_pixels_undo_the_whitening():
    pixels = torch.rand(6, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    for kind in ("mean-std", "zca"):
        white = distilled(whitening=kind).whitening
        assert torch.allclose(distilled(images=white.apply(pixels), whitening=kind).pixels(), pixels, atol=1e-4)
    with pytest.raises(StoreError, match="carries no whitening"):
        distilled(whitening=None).pixels()


def test_as_a_torch_data_set():
    soft, hard = distilled(), distilled(soft=False)
    image, target = soft.as_dataset()[3]
    assert torch.equal(image, soft.images[3]) and torch.equal(target, soft.label_logits[3].softmax(-1))
    assert int(hard.as_dataset()[3][1]) == 1
    assert len(torch.utils.data.DataLoader(soft.as_dataset(), batch_size=4)) == 2
    assert soft.targets is soft.label_logits and hard.targets is hard.labels
    assert (soft.classes, hard.classes, distilled(soft=False, class_names=()).classes) == (3, 3, 3)
    assert repr(soft) == "DistilledDataset(6 images 2x4x4, soft labels, lr 0.01235)"
    assert "hard labels" in repr(hard)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"images": torch.zeros(6, 4, 4)}, r"shape \[6, 4, 4\]"),
        ({"images": torch.zeros(0, 2, 4, 4)}, "N >= 1"),
        ({"labels": torch.tensor([0, 1])}, r"expected int64 \[6\]"),
        ({"labels": torch.zeros(6)}, "torch.float32"),
        ({"label_logits": torch.zeros(5, 3)}, r"shape \[5, 3\] for 6 images"),
        ({"label_logits": torch.zeros(6)}, r"expected \[6, classes\]"),
        ({"images": torch.full((6, 2, 4, 4), float("nan"))}, "NaN"),
        ({"label_logits": torch.full((6, 3), float("inf"))}, "infinite"),
        ({"lr": 0.0}, "learning rate is 0.0"),
        ({"lr": float("nan")}, "learning rate is nan"),
    ],
)
def test_sets_that_make_no_sense(changed, named):
    with pytest.raises(StoreError, match=named):
        distilled(**changed)


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="no distilled set at .*: there is neither distilled.safetensors nor images_"):
        load(tmp_path)
    with pytest.raises(StoreError, match="no distilled set at .*missing"):
        load(tmp_path / "missing")
    distilled().save(tmp_path)
    (tmp_path / "distilled.safetensors").unlink()
    (tmp_path / "images_best.pt").unlink()
    with pytest.raises(StoreError, match="no distilled set at"):
        load(tmp_path)


@pytest.mark.parametrize("damage", ["short", "empty", "words", "foreign", "description", "format", "rate"])
def test_damaged_and_foreign_files(tmp_path, damage):
    from safetensors.torch import save

    file = distilled().save(tmp_path)
    described = '{"format": "pad_fast distilled 1", "config": {}, "history": [], "class_names": []}'
    tensors = {"images": torch.zeros(1, 1, 2, 2), "labels": torch.zeros(1, dtype=torch.int64), "lr": torch.ones(2)}
    file.write_bytes(
        {
            "short": file.read_bytes()[:-9],
            "empty": b"",
            "words": b"no tensors at all",
            "foreign": save({"weight": torch.zeros(2)}),
            "description": save({"images": torch.zeros(1, 1, 2, 2)}, {"pad_fast": "[]"}),
            "format": save({"images": torch.zeros(1, 1, 2, 2)}, {"pad_fast": '{"format": "pad_fast distilled 9"}'}),
            "rate": save(tensors, {"pad_fast": described}),
        }[damage]
    )
    named = (
        "format 'pad_fast distilled 9'"
        if damage == "format"
        else r"distilled\.safetensors is damaged or no distilled set of"
    )
    with pytest.raises(StoreError, match=named):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("images", [torch.zeros(2)], "one tensor is expected"),
        ("labels", "words", "one tensor is expected"),
        ("lr", torch.ones(3), r"lr_best\.pt must hold one number"),
        ("lr", "words", r"lr_best\.pt must hold one number"),
        ("lr", torch.tensor(-1.0), "must be positive"),
        ("images", torch.zeros(5, 2, 4, 4), r"expected int64 \[5\]"),
    ],
)
def test_trios_that_make_no_sense(tmp_path, name, value, named):
    distilled().save(tmp_path)
    (tmp_path / "distilled.safetensors").unlink()
    torch.save(value, tmp_path / f"{name}_best.pt")
    with pytest.raises(StoreError, match=named):
        load(tmp_path)


def test_a_truncated_trio_names_the_file(tmp_path):
    distilled().save(tmp_path)
    (tmp_path / "distilled.safetensors").unlink()
    path = tmp_path / "labels_best.pt"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(StoreError, match=r"labels_best\.pt cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("soft", [True, False])
def test_it_is_indexed_as_its_torch_data_set_is(soft):
    made = distilled(soft=soft)
    same = made.as_dataset()
    assert len(made) == len(same) == 6
    for index in (0, 5, -2, slice(1, 4), torch.tensor([4, 0])):
        for mine, theirs in zip(made[index], same[index], strict=True):
            torch.testing.assert_close(mine, theirs)
    assert [target.dim() for _, target in made] == [int(soft)] * 6, "it ends where the images do"
    batches = list(torch.utils.data.DataLoader(made, batch_size=4))  # type: ignore[arg-type, var-annotated]
    assert [len(images) for images, _ in batches] == [4, 2]


@pytest.mark.parametrize("soft", [True, False])
def test_it_is_brought_to_a_device(soft, monkeypatch):
    made, asked = distilled(soft=soft), []
    monkeypatch.setattr(torch.Tensor, "to", lambda each, device: asked.append(device) or each + 1)
    there = made.to("cuda:1")
    assert asked == ["cuda:1"] * (2 + soft)
    moved = [(there.images, made.images), (there.labels, made.labels), (there.targets, made.targets)]
    assert all(torch.equal(after, before + 1) for after, before in moved)
    assert there.lr == made.lr and there.class_names == made.class_names and there.whitening is made.whitening


def test_labels_that_have_moved_are_told():
    logits = torch.eye(3)[[0, 0, 1, 2, 2, 0]] * 4
    made = distilled(label_logits=logits)
    assert made.moved.tolist() == [False, False, False, True, False, True] and made.labels.tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert not distilled(soft=False).moved.any()


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("whitening", [None, "mean-std"])
def test_a_notebook_shows_its_images(channels, whitening):
    images = torch.randn(6, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    white = None if whitening is None else MeanStd(torch.full((channels,), 0.5), torch.full((channels,), 0.2))
    logits = torch.eye(3)[[0, 0, 1, 1, 2, 0]]
    made = replace(distilled(images=images, class_names=("a", "<b>", "c"), label_logits=logits), whitening=white)
    with Image.open(io.BytesIO(made._repr_png_())) as sheet:
        # Three rows of two images, each with a line behind it, and every pixel a square of 12.
        assert sheet.size == (2 * 5 * 12, 3 * 5 * 12) and len(set(sheet.convert("L").getdata())) > 5


def test_it_knows_the_folder_it_was_read_from(tmp_path):
    made = distilled()
    assert made.folder is None
    file = made.save(tmp_path / "set")
    assert load(tmp_path / "set").folder == load(file).folder == load(str(file)).folder == tmp_path / "set"
    assert load(made.export(tmp_path / "npz", "npz")).folder == tmp_path / "npz"
