"""Models of another library by name: taken where it is there, a clear word where it is not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitc
from vitc.cli.main import main
from vitc.config import from_dict, to_dict
from vitc.errors import ConfigError
from vitc.machine import install_line
from vitc.models import timm as borrowed
from vitc.models.config import TimmConfig
from vitc.models.timm import import_peer
from vitc.models.zoo import model_config
from vitc.resolve import load_config
from vitc.training.loop import run


class Net(nn.Module):
    """What the stand-in for timm makes: any size of images, a head called fc."""

    def __init__(self, num_classes: int, in_chans: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 8, 3, stride=4)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.conv(x).relu().mean((2, 3))))

    def get_classifier(self) -> nn.Module:
        return self.fc


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in with the few functions that are asked of timm."""
    module = types.ModuleType("timm")

    def create_model(name: str, **settings: Any) -> nn.Module:
        settings.pop("drop_rate")
        if name == "net_224_only" and "img_size" not in settings:
            return Net(**settings)
        if name == "net_224_only":
            raise AssertionError("Input height doesn't match.")
        return Net(**settings, dropout=0.5 if name == "net_dropout" else 0.0)

    names = ["net_a", "net_dropout", "net_224_only"]
    module.__dict__.update(
        __version__="1.0",
        list_models=lambda: names,
        is_model=lambda name: name in names,
        get_pretrained_cfg=lambda name: types.SimpleNamespace(input_size=(3, 96, 96)),
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_has_its_own_size_and_goes_through_json() -> None:
    config = model_config("timm:net_a")
    assert config == TimmConfig(name="timm:net_a", img_size=96)
    run_config = load_config("debug", model="timm:net_a")
    assert run_config.model.name == "timm:net_a"
    assert run_config.model.img_size == 32  # the recipe's images
    assert from_dict(to_dict(run_config)) == run_config


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_trains_resumes_and_predicts(tmp_path: Path) -> None:
    config = load_config("debug", model="timm:net_a", **{"train.epochs": 1, "train.threads": 1})
    result = run(config, tmp_path / "r", quiet=True)
    assert result.status == "done"
    predictor = vitc.Predictor(tmp_path / "r")
    assert predictor(torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()).probs.shape == (1, 10)


@pytest.mark.usefixtures("timm")
def test_show_counts_a_model_of_timm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "timm:net_a"]) == 0
    assert "timm:net_a" in capsys.readouterr().out


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:net_b", ("no model 'net_b'", "Did you mean 'net_a'?")),
        ("timm:net_a.in1k", ("pretrained weights", "--init timm:net_a.in1k")),
    ],
)
def test_a_name_that_timm_does_not_have_is_refused(name: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        vitc.create_model(name)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.usefixtures("timm")
def test_dropout_that_cannot_be_drawn_on_the_host_is_refused() -> None:
    with pytest.raises(ConfigError, match="active dropout in drop"):
        vitc.create_model("timm:net_dropout")


@pytest.mark.usefixtures("timm")
def test_a_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot build 'net_224_only' for 64x64"):
        vitc.create_model("timm:net_224_only", img_size=64)


def test_without_timm_the_error_has_the_line_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(borrowed, "import_module", absent)
    assert main(["show", "timm:resnet18"]) == 2
    error = capsys.readouterr().err
    assert "not installed" in error
    assert f"Install it with: {install_line('timm')}" in error


def test_a_config_that_names_timm_loads_without_it() -> None:
    config = from_dict({"model": {"kind": "timm", "name": "timm:resnet18", "img_size": 64}})
    assert config.model == TimmConfig(name="timm:resnet18", img_size=64)
    assert "timm" not in sys.modules or hasattr(sys.modules["timm"], "__file__")


def test_the_real_library_gives_models_that_can_be_counted() -> None:
    try:
        import_peer("timm")
    except ImportError:
        pytest.skip("timm is not installed (extra peers): its models are not tried")
    for name, params in (("timm:vit_tiny_patch16_224", 5_717_416), ("timm:resnet18", 11_689_512)):
        model = vitc.create_model(name)
        assert vitc.complexity(model).params == params
    small = vitc.create_model("timm:vit_tiny_patch16_224", num_classes=7, img_size=64)
    assert small(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
