"""The graph of an export prepares images as evaluation does, and computes what the model does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vitc
from benchmarks.export import script_parts
from tests.test_export import filled
from vitc.data.augment.crop import eval_image
from vitc.data.preprocessing import Fit, Preprocessing
from vitc.deploy.export.graph import Prepare
from vitc.models.folding import folded


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_preparation_in_the_graph_is_that_of_evaluation_to_the_bit(
    fit: Fit, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    crop = 0.9 if fit == "crop" else None
    prepare = Prepare(Preprocessing((0.0,) * 3, (1 / 255,) * 3, crop=crop, img_size=size, fit=fit))
    for height, width in [
        size,
        (1, 1),
        (7, 300),
        (9, 12),
        (48, 80),
        *rng.integers(2, 200, (60, 2)),
    ]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = prepare(torch.from_numpy(image)[None])[0]
        expected = eval_image(image, size, fit, crop or 1.0)
        torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_resizing_by_products_is_that_of_evaluation(fit: Fit) -> None:
    rng = np.random.default_rng(1)
    crop, size = (0.9 if fit == "crop" else None), (24, 40)
    p = Preprocessing((0.0,) * 3, (1 / 255,) * 3, crop=crop, img_size=size, fit=fit)
    prepare = Prepare(p, exact=True)
    off = pixels = 0
    sides = [size, (1, 1), (7, 300), (9, 12), (48, 80), *rng.integers(2, 200, (60, 2))]
    for height, width in sides:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        found = prepare(torch.from_numpy(image)[None])[0]
        expected = eval_image(image, size, fit, crop or 1.0)
        differ = (found - expected).abs()
        assert differ.max() < 1.5
        off, pixels = off + int((differ > 0.5).sum()), pixels + differ.numel()
    assert off < 1e-4 * pixels  # ties; by engines of their own 4e-3


def test_batchnorm_is_folded_and_the_model_left_as_it_was() -> None:
    model = filled(vitc.create_model("vit_c_tiny", num_classes=3, img_size=32))
    copy = folded(model)
    kinds = [[type(m) for m in net.modules()].count(nn.BatchNorm2d) for net in (model, copy)]
    assert kinds[0] > 0
    assert kinds[1] == 0
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert model(x).std() > 0.1
        torch.testing.assert_close(copy(x), model(x), rtol=1e-4, atol=1e-5)


class NormAct(nn.BatchNorm2d):
    """A norm that does more, as timm's BatchNormAct2d."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


def test_what_is_more_than_a_norm_is_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    x = torch.randn(2, 3, 8, 8)
    copy = folded(model)
    assert [type(m) for m in copy] == [nn.Conv2d, NormAct, nn.Conv2d, nn.Identity]
    with torch.no_grad():
        torch.testing.assert_close(copy(x), model.eval()(x))


def test_the_benchmark_runs_the_script_of_the_docs() -> None:
    opening, photo = script_parts()
    assert "InferenceSession(model)" in opening
    assert "Image.open(photo)" in photo
    assert "session.run" in photo
    for part in (opening, photo):
        compile(part, "docs/export.md", "exec")
