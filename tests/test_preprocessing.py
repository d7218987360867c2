"""Preprocessing: stored as plain JSON, checked when read, applied as in evaluation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.batches import plan
from vitc.data.config import DataConfig
from vitc.data.dataset import DataSet
from vitc.data.loader import open_eval
from vitc.data.preprocessing import Preprocessing
from vitc.data.sources.base import Split
from vitc.errors import CheckpointError


def test_preprocessing_survives_as_plain_json() -> None:
    pre = Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 2.0), "bgr", "bicubic", 0.9, (32, 48))
    assert Preprocessing.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre
    assert pre.reversed().mean == (0.3, 0.2, 0.1)
    assert pre.reversed().reversed() == pre


@pytest.mark.parametrize(
    "values",
    [
        None,
        {"mean": [0.5], "std": [0.5, 0.5]},
        {"mean": [0.5], "std": [0]},
        {"mean": ["a"], "std": [1]},
        {"mean": [0.5], "std": [0.5], "channels": "cmyk"},
        {"mean": [0.5], "std": [0.5], "crop": 7},
        {"mean": [0.5], "std": [0.5], "surprise": 1},
    ],
)
def test_damaged_preprocessing_is_refused(values: Any) -> None:
    with pytest.raises(CheckpointError, match="preprocessing"):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_an_image_is_prepared_as_in_evaluation(fit: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    split = Split(labels=np.array([0, 1]), names=["a", "b"], pixels=pixels)
    data = DataSet("folder", ("a", "b"), {"train": split}, (0.5,) * 3, (0.2,) * 3, (), "")
    config = DataConfig(source="folder", path=".", fit=fit, resident="off", workers=0)
    ((images, _),) = open_eval(
        split, data, config, plan(size=(24, 32)), torch.device("cpu"), batch=2
    )
    record = {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "in_chans": 3,
        "img_size": [24, 32],
        "fit": fit,
        "eval_crop": config.eval_crop,
    }
    preprocessing = Preprocessing.from_run(record)
    assert torch.equal(torch.stack([preprocessing.prepare(p) for p in pixels]), images)
