"""Labels in the forms people have them: gaps, names, columns, one-hot rows, whole floating point numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pad_fast import ImageDataset, load_dataset
from pad_fast.errors import DatasetError

IDS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0, 2])  # no order, no class as often as another
TEST_IDS = torch.tensor([1, 0, 2, 2])


def load(labels: Any, test_labels: Any = None, **more: Any) -> ImageDataset:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(len(labels), 1, 8, 8, generator=draws)
    if test_labels is None:
        return load_dataset({"images": images, "labels": labels, **more})
    tests = torch.rand(len(test_labels), 1, 8, 8, generator=draws)
    return load_dataset(
        {"train_images": images, "train_labels": labels, "test_images": tests, "test_labels": test_labels, **more}
    )


NAMES = ("dog10", "dog9", "ant")  # of ids 0, 1, 2; in natural order: ant, dog9, dog10
FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "list": lambda ids: ids.tolist(),
    "column": lambda ids: ids.numpy().astype(np.uint8)[:, None],
    "tensor column": lambda ids: ids[:, None],
    "uint64": lambda ids: ids.numpy().astype(np.uint64),
    "list of arrays": lambda ids: [np.array([label], np.int32) for label in ids.tolist()],
    "list of tensors": list,
    "one-hot": lambda ids: torch.eye(3)[ids],
    "one-hot bool": lambda ids: torch.eye(3)[ids].bool().numpy(),
    "one-hot list": lambda ids: torch.eye(3)[ids].long().tolist(),
    "whole floats": lambda ids: ids.double().numpy(),
    "whole floats column": lambda ids: ids.half()[:, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_class_ids(form: str, caplog: pytest.LogCaptureFixture) -> None:
    data = load(FORMS[form](IDS), FORMS[form](TEST_IDS))
    assert torch.equal(data.train_labels, IDS) and torch.equal(data.test_labels, TEST_IDS)
    assert data.class_names == ("0", "1", "2")
    said = [record.message for record in caplog.records]
    if "one-hot" in form:
        assert said == ["one-hot rows of 3 numbers of tensors are taken for class ids"]
    elif "floats" in form:
        assert said == ["whole numbers in floating point of tensors are taken for class ids"]
    else:
        assert said == []


@pytest.mark.parametrize("form", ["list", "array", "bytes", "column"])
def test_names_become_ids_in_natural_order(form: str, caplog: pytest.LogCaptureFixture) -> None:
    def named(ids: torch.Tensor) -> Any:
        words = [NAMES[label] for label in ids.tolist()]
        array = np.array(words)
        return {"list": words, "array": array, "bytes": array.astype("S"), "column": array[:, None]}[form]

    data = load(named(IDS), named(TEST_IDS))
    assert data.class_names == ("ant", "dog9", "dog10")
    assert torch.equal(data.train_labels, 2 - IDS) and torch.equal(data.test_labels, 2 - TEST_IDS)
    assert [record.message for record in caplog.records] == [
        "labels of tensors are names: class ids follow their sorted order, ant, dog9, dog10"
    ]


def test_names_in_an_order_of_ones_own() -> None:
    words = [NAMES[label] for label in IDS.tolist()]
    data = load(words, class_names=("dog9", "cow", "dog10", "ant"))
    assert data.class_names == ("dog9", "dog10", "ant")  # no cow among the images
    both = torch.bincount(torch.cat([data.train_labels, data.test_labels])).tolist()
    assert both == [words.count(name) for name in data.class_names]


def test_names_are_those_of_both_splits_together() -> None:
    data = load(["b", "c", "a"], ["c", "a", "b"])
    assert data.train_labels.tolist() == [1, 2, 0] and data.test_labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("ids", [[0, 2, 7], [1, 2, 3], [10, 20, 30], [0, 1, 2 * 10**9]])
def test_gaps_are_closed_and_ids_stay_the_names(ids: list[int], caplog: pytest.LogCaptureFixture) -> None:
    given = torch.tensor(ids)
    data = load(given[IDS], given[TEST_IDS])
    assert torch.equal(data.train_labels, IDS) and torch.equal(data.test_labels, TEST_IDS)
    assert data.class_names == tuple(str(each) for each in ids)
    said = [record.message for record in caplog.records]
    assert len(said) == 1 and f"have gaps: {ids[0]}, {ids[1]}, {ids[2]} become 0 to 2" in said[0]


def test_gaps_with_names(caplog: pytest.LogCaptureFixture) -> None:
    given = torch.tensor([0, 2, 4])
    by_id = load(given[IDS], given[TEST_IDS], class_names=list("abcdef"))
    assert by_id.class_names == ("a", "c", "e") and torch.equal(by_id.train_labels, IDS)
    assert "3 of the 6 classes of tensors have no image and are left out" in caplog.text
    in_turn = load(given[IDS], given[TEST_IDS], class_names=list("abc"))
    assert in_turn.class_names == ("a", "b", "c") and "0, 2, 4 are a, b, c" in caplog.text


def test_a_class_may_be_rare() -> None:
    data = load([0] * 40 + [1] * 3 + [2] * 2)
    assert torch.bincount(data.train_labels).tolist() == [32, 2, 1]
    assert torch.bincount(data.test_labels).tolist() == [8, 1, 1]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0, 1, 1], [1, 0, 0]] * 4, r"label 0 of the data set has 2 classes at once.*labels.sum\(1\) == 1"),
        (torch.tensor([[1, 0], [0, 0]] * 4), "label 1 of the data set has 0 classes at once"),
        (torch.tensor([[0.9, 0.1], [0.5, 0.5]] * 4), r"one-hot rows; got \[8, 2\].*labels.argmax\(1\)"),
        ([[0], [0, 1]] * 4, "label 1 of the data set has 2 numbers, others 1"),
        (torch.tensor([0.0, 1.5] * 4), "label 1 of the data set must be an integer class id; got 1.5.*bucketize"),
        (torch.tensor([0.0, torch.nan] * 4), "label 1 .* got nan"),
        ([0, 1] * 3 + [0, None], "label 7 of the data set must be an integer class id; got None"),
        (["a", 1] * 4, "label 1 of the data set is 1, and others are names; give every image one"),
        (["a"] * 7 + [None], "label 7 of the data set is None, and others are names; give every image one"),
        ([{"boxes": []}] * 8, "must be an integer class id; got {'boxes'"),
        (torch.zeros(8, 2, 2, dtype=torch.int64), r"shape \[N\].*\[8, 2, 2\]"),
        (torch.tensor([True, False] * 4), "torch.bool"),
    ],
)
def test_what_is_no_class_is_refused(labels: Any, said: str) -> None:
    with pytest.raises(DatasetError, match=re.compile(said, re.DOTALL)):
        load(labels)


def test_names_that_class_names_does_not_have() -> None:
    with pytest.raises(DatasetError, match="name classes that class_names does not have: cow, dog; add them there"):
        load(["cow", "ant", "dog"] * 3, class_names=["ant"])
    assert load(["cow", "ant"] * 3, class_names=["ant", "cow"]).class_names == ("ant", "cow")


def test_more_ids_than_names() -> None:
    with pytest.raises(DatasetError, match="run from 0 to 9; with 2 classes they are 0 to 1"):
        load(torch.tensor([0, 5, 9] * 3), class_names=["a", "b"])
