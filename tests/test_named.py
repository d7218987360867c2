"""Contenders of a user's own: by name, as classes and functions of a file or of a notebook."""

from __future__ import annotations

import functools
import linecache
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vitc import study
from vitc.config import RunConfig
from vitc.errors import ConfigError
from vitc.models.timm import import_peer
from vitc.models.zoo import build_model, create_model, model_config
from vitc.optim.schedule import CustomScheduleConfig
from vitc.plugins.consent import customs
from vitc.study.contenders import OWN_OPTIM
from vitc.study.design import Plan, mixed
from vitc.study.measures.hparams import hparams_plan, range_lines
from vitc.study.named import settings_of
from vitc.study.study_folder import from_json, to_json

CELL = """
import torch
from torch import nn
import torch.nn.functional as F
from functools import partial

WIDTH = 6
NOISE = torch.zeros(2)

def conv(a, b, k=3):
    return nn.Conv2d(a, b, k, stride=2)

class Base(nn.Module):
    def forward(self, x):
        return self.head(F.relu(self.conv(x)).mean((2, 3)))

class Net(Base):
    def __init__(self, num_classes: int, in_chans: int = 3, width: int = WIDTH):
        super().__init__()
        self.conv, self.head = conv(in_chans, width), nn.Linear(width, num_classes)

def make(num_classes, in_chans):
    return Net(num_classes, in_chans)

class Stem(nn.Module):
    def __init__(self, in_chans, embed_dim):
        super().__init__()
        self.reduction = 8
        self.conv = nn.Conv2d(in_chans, embed_dim, 8, 8)
    def forward(self, x):
        return self.conv(x)

class Sign(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)

def linear(step, total_steps, end=0.0):
    return 1 - (1 - end) * step / total_steps

def rising(step, total_steps):
    return -step

def noisy(num_classes):
    return NOISE

def local():
    class Inside(nn.Module):
        pass
    return Inside
"""


@pytest.fixture(scope="module")
def cell() -> Any:
    """What a notebook's cell defines: a module without a file, its source known to linecache."""
    module = types.ModuleType("a_notebook")
    linecache.cache["<cell 1>"] = (len(CELL), None, CELL.splitlines(True), "<cell 1>")
    sys.modules["a_notebook"] = module
    exec(compile(CELL, "<cell 1>", "exec"), vars(module))
    yield module
    del sys.modules["a_notebook"]


def plan_of(contenders: Any, folder: Path, **words: Any) -> Plan:
    own = settings_of(contenders, folder)
    return hparams_plan(["debug"], [], ["adamw"], draws=2, contenders=own, **words)


def config_of(plan: Plan, contender: str) -> RunConfig:
    return next(g.config for g in plan.groups if g.contender == contender)


def test_classes_and_functions_of_a_notebook_are_found_again_in_a_file(
    cell: Any, tmp_path: Path
) -> None:
    wide = functools.partial(cell.Net, width=9)
    plan = plan_of({"net": cell.Net, "wide": wide, "made": cell.make, "c": "vit_c_tiny"}, tmp_path)
    assert plan.contenders == ["net", "wide", "made", "c"]
    widths = []
    for name in ("net", "wide", "made"):
        config = config_of(plan, name)
        (custom,) = customs(config)
        assert Path(custom.place).parent == tmp_path / "sources"
        built = build_model(config.model, 4)
        assert isinstance(built.conv, nn.Conv2d)
        widths.append(built.conv.out_channels)
    assert widths == [6, 9, 6]
    assert from_json(to_json(plan)) == plan


def test_stems_optimizers_and_schedules_are_recognised(cell: Any, tmp_path: Path) -> None:
    found = settings_of(
        {"a": cell.Stem, "b": cell.Sign, "c": cell.linear, "d": "sgd", "e": "conv", "f": "cosine"},
        tmp_path,
    )
    parts = [list(settings) for settings in found.values()]
    optim, schedule, stem = ["optim"], ["optim.schedule"], ["model.stem"]
    assert parts == [stem, optim, schedule, optim, stem, schedule]
    mixed_ = settings_of({"x": {"model": cell.Net, "optim.clip_norm": 1.0}}, tmp_path)
    assert mixed_["x"]["model"].endswith(":Net")


def test_a_schedule_is_the_question_and_no_unfair_difference(cell: Any, tmp_path: Path) -> None:
    linear = functools.partial(cell.linear, end=0.5)
    plan = plan_of({"linear": linear, "cosine": "cosine"}, tmp_path)
    schedule = config_of(plan, "linear").optim.schedule
    assert isinstance(schedule, CustomScheduleConfig)
    assert schedule.lr(10, peak=2.0, epochs=1, steps_per_epoch=10) == pytest.approx(1.0)
    assert plan.differ == ("schedule",)
    assert mixed(plan) == []
    assert from_json(to_json(plan)).differ == ("schedule",)
    longer = {"long": {"train.epochs": 7}, "c": {"data.max_train": 64, "train.batch": 64}}
    differ = [line.split("differ in ")[1].split()[0] for line in mixed(plan_of(longer, tmp_path))]
    assert differ == ["epochs", "batch", "data"]
    with pytest.raises(ConfigError, match="would not be compared fairly"):
        study.run(recipes="debug", contenders=longer, draws=2, out=tmp_path / "s")


def test_optimizers_are_compared_on_ranges_of_their_own(cell: Any, tmp_path: Path) -> None:
    plan = plan_of({"sign": cell.Sign, "adamw": "adamw", "sgd": "sgd"}, tmp_path)
    assert plan.optims == [OWN_OPTIM]
    lrs = {t.contender: t.values["optim.lr"] for t in plan.trials() if t.draw == 0}
    assert lrs["sign"] == lrs["adamw"]
    assert lrs["sgd"] == pytest.approx(50 * lrs["adamw"], rel=1e-3)  # 0.05 and 0.001 in the recipe
    assert config_of(plan, "sign").optim.lr == config_of(plan, "adamw").optim.lr
    sgd, others = range_lines(plan, "debug")[:2]
    assert "lr 0.00625 to 0.2" in sgd
    assert "own optimizer: lr 0.000125 to 0.004" in others
    asked = plan_of({"sgd": "sgd", "adamw": "adamw"}, tmp_path, range=[("optim.lr", "0.01", "0.1")])
    lrs = {t.contender: t.values["optim.lr"] for t in asked.trials() if t.draw == 0}
    assert lrs["sgd"] == lrs["adamw"]


def test_a_schedule_free_contender_differs_in_schedule_and_average_by_design(
    tmp_path: Path,
) -> None:
    plan = plan_of({"adamw": "adamw", "free": "adamw_schedulefree"}, tmp_path)
    assert plan.differ == ("schedule", "ema")
    assert mixed(plan) == []
    drawn = {t.contender: t.values for t in plan.trials() if t.draw == 0}
    assert drawn["free"]["optim.lr"] == pytest.approx(2 * drawn["adamw"]["optim.lr"], rel=1e-3)
    assert plan_of({"a": "adamw", "b": "muon"}, tmp_path).differ == ()


def test_words_of_a_command_name_contenders(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(CELL)
    words = ["vit_c_tiny", f"{file}:Net(width=4)", f"lin={file}:linear", f"{file}:make"]
    assert settings_of(words, tmp_path) == {
        "vit_c_tiny": {"model": "vit_c_tiny"},
        "Net(width=4)": {"model": f"{file}:Net(width=4)"},
        "lin": {"optim.schedule": f"{file}:linear"},
        "make": {"model": f"{file}:make"},
    }
    with pytest.raises(ConfigError, match="called vit_c_tiny"):
        settings_of(["vit_c_tiny", "vit_c_tiny"], tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("noisy", "NOISE, a Tensor, cannot be written"),
        ("local()", "inside a function"),
        ("Net(4)", "A built Net is no contender"),
        ("(lambda num_classes: None)", "neither a class nor a named function"),
        ("rising", "share of the peak"),
        ("partial(Net, 4)", "positional"),
        ("7", "no contender"),
    ],
)
def test_what_cannot_be_a_contender_is_refused(
    name: str, text: str, cell: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_of({"x": eval(name, vars(cell)), "vit_c_tiny": "vit_c_tiny"}, tmp_path)


def test_names_exclude_models_and_several_recipes(tmp_path: Path) -> None:
    own = settings_of(["vit_c_tiny"], tmp_path)
    for recipes, models in ((["debug"], ["vit_p_tiny"]), (["debug", "fashion_vit_p"], [])):
        with pytest.raises(ConfigError, match="one recipe"):
            hparams_plan(recipes, models, ["adamw"], draws=1, contenders=own)
    with pytest.raises(ConfigError, match="single --optims"):
        hparams_plan(
            ["debug"], [], ["adamw", "sgd"], draws=1, contenders=settings_of(["sgd"], tmp_path)
        )


@pytest.mark.slow
def test_a_study_of_a_notebooks_class_runs_and_shows_itself(cell: Any, tmp_path: Path) -> None:
    made = study.run(
        contenders={"mine": cell.Net, "vit_p_tiny": "vit_p_tiny"},
        recipes="debug",
        draws=2,
        workers=1,
        out=tmp_path / "s",
        quiet=True,
        **{"train.epochs": 1, "train.batch": 64, "data.max_train": 64, "train.precision": "fp32"},
    )
    assert [r.status for r in made.section.results] == ["done"] * 4
    page = made._repr_html_()
    assert "mine" in page
    assert str(made.report) in page


def test_models_of_torchvision_are_built_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_model(name: str, weights: None, num_classes: int, **settings: Any) -> nn.Module:
        head = nn.Linear(3, num_classes)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), head)

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["resnet18"]  # type: ignore[attr-defined]
    models.get_model = get_model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    model = create_model("torchvision:resnet18", num_classes=5, img_size=32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert model[2].p == 0.0  # type: ignore[index]
    with pytest.raises(ConfigError, match="Did you mean 'resnet18'"):
        model_config("torchvision:resnet81")
    with pytest.raises(ConfigError, match="in_chans 3"):
        create_model("torchvision:resnet18", in_chans=1)
    headless = create_model("torchvision:resnet18", num_classes=0, img_size=32)
    assert headless(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.slow
def test_a_model_of_the_real_torchvision_is_built() -> None:
    try:
        import_peer("torchvision")
    except ImportError:
        pytest.skip("torchvision is missing: its models were NOT built")
    headless = create_model("torchvision:resnet18", num_classes=0, img_size=64)
    assert headless(torch.zeros(2, 3, 64, 64)).shape == (2, 512)
    with pytest.raises(ConfigError, match="does not end in a linear layer"):
        create_model("torchvision:squeezenet1_1", num_classes=0)
    model = create_model("torchvision:resnet18", num_classes=5, img_size=64)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 5)
