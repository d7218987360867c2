"""`vitc.evaluate`: the numbers of a run's own evaluation, by class, of a run or a saved model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import vitc
from vitc.deploy.classifier import Classifier
from vitc.deploy.evaluation import evaluate, predict_split
from vitc.errors import ConfigError
from vitc.runs.folder import Run
from vitc.training.evaluate import Counts, evaluate_run


def test_it_has_the_numbers_of_the_runs_last_evaluation_and_adds_up(trained: Path) -> None:
    found = vitc.evaluate(trained)
    assert found.to_dict() == evaluate_run(trained)
    last = Run(trained).metrics("eval")[-1]
    assert (found.n, found.top1) == (last["n"], last["top1"])
    assert found.interval[0] < found.top1 < found.interval[1]
    correct = sum(c.correct for c in found.per_class)
    assert found.top1 == pytest.approx(100 * correct / found.n)
    assert sum(c.n for c in found.per_class) == found.confusion.sum() == found.n
    assert [c.correct for c in found.per_class] == np.diag(found.confusion).tolist()
    raw = evaluate(trained, weights="raw")
    assert raw.top1 == last["top1_raw"]


def test_a_split_has_a_name_a_label_and_logits_for_every_image(trained: Path) -> None:
    classifier = Classifier.load(trained, "cpu")
    found = predict_split(classifier, split="test")
    assert len(set(found.names)) == len(found.labels) == len(found.logits)
    assert found.logits.shape[1] == len(classifier.classes)
    with pytest.raises(ConfigError, match="no train2 images"):
        predict_split(classifier, split="train2")


def test_a_saved_model_answers_as_its_run(trained: Path, tmp_path: Path) -> None:
    saved = vitc.save_pretrained(trained, tmp_path / "saved")
    mine, theirs = (evaluate(path, data="synthetic") for path in (trained, saved))
    assert theirs.top1 == mine.top1
    assert theirs.loss == pytest.approx(mine.loss)
    with pytest.raises(ConfigError, match="has no effect"):
        evaluate(saved, weights="raw")


def test_of_equal_logits_the_first_is_the_answer_as_in_the_confusion_matrix() -> None:
    counts = Counts(torch.device("cpu"))
    logits = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)).bfloat16().round()
    labels = torch.arange(500) % 12
    counts.add(logits, labels)
    right = logits.float().numpy().argmax(axis=1) == labels.numpy()
    assert counts.result()["top1"] == pytest.approx(100 * right.mean())
