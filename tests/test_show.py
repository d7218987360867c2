"""`vitc show MODEL`: its cost, the stem beside a block, the paper's print beside the count."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from vitc.cli.main import main
from vitc.deploy.show import model_page, page
from vitc.models.complexity import parts
from vitc.models.zoo import create_model, model_config
from vitc.optim.groups import EXEMPT, HIDDEN, WEIGHTS
from vitc.views.model import Table
from vitc.views.text import write


def text_of(shown: Any) -> str:
    stream = io.StringIO()
    write(shown.parts, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["vit_p_1gf", "vit_c_ln_4gf", "vit_p_tiny", "vit_c_tiny"])
def test_the_stems_flops_are_compared_with_those_of_a_block(name: str) -> None:
    shown = model_page(model_config(name))
    cost = {p.name.partition(".")[0]: p.each.flops for p in parts(create_model(name))}
    ratio = cost["stem"] / cost["blocks"]
    assert shown.values["stem_over_block"] == ratio
    assert f"Its stem costs {ratio:.2f} of one block" in text_of(shown)


@pytest.mark.parametrize(
    ("stem", "settings"),
    [
        ("dual_patchnorm", "--model.stem.patch_size 8 --model.qk_norm true"),
        ("scaled_relu", "--model.stem.width 16 --model.registers 4"),
        ("overlap", "--model.stem.kernel_size 11"),
        ("depthwise", "--model.stem.channels 8 16 32"),
        ("norm_free", ""),
        ("conv", "--model.stem.norm ln --model.stem.act gelu"),
    ],
)
def test_a_model_with_a_rival_stem_is_shown_with_the_stems_cost(
    stem: str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"show vit_c_tiny --model.stem {stem} {settings} --json".split()) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["settings"]["stem"]["kind"] == stem
    assert values["stem_over_block"] > 0.1
    assert "reported" not in values


def table(shown: Any, title: str) -> list[tuple[str, ...]]:
    return next(list(p.rows) for p in shown.parts if isinstance(p, Table) and title in p.title)


def test_a_stem_of_table_3_is_shown_beside_what_is_printed_and_the_slip_is_said() -> None:
    shown = model_page(model_config("vit_s1_4gf"))
    rows = table(shown, "Table 3")
    assert rows[0] == ("flops", "422.11 M", "422 M", "+0.0 %")
    assert shown.values["reported_stem"] == {"flops": 422e6, "params": 0.8e6, "activations": 1.3e6}
    assert "42" in shown.values["slip"]
    assert "52" in shown.values["slip"]
    assert shown.values["slip"] in text_of(shown)
    patchify = model_page(model_config("vit_p_4gf"))
    assert table(patchify, "Table 3")[2] == ("activations", "0.08 M", "0.8 M", "-90.6 %")
    assert table(patchify, "Table 1")[0] == ("flops", "3.91 G", "3.9 G", "+0.2 %")
    assert "0.08 M must be meant" in text_of(patchify)


@pytest.mark.slow
def test_the_72gf_model_is_shown_at_224_and_384() -> None:
    shown = model_page(model_config("vit_c_72gf"))
    assert table(shown, "appendix C") == [
        ("224", "72.79 G", "72 G", "+1.1 %"),
        ("384", "224.32 G", "224 G", "+0.1 %"),
    ]
    assert shown.values["reported_flops_at"] == {"224": 72e9, "384": 224e9}


def test_a_changed_model_is_not_compared_with_the_paper() -> None:
    shown = page("vit_s1_4gf", {"model.depth": 2}, None)
    assert not {"reported_stem", "slip", "twin"} & shown.values.keys()
    assert shown.values["stem_over_block"] > 1


def test_a_recipe_is_shown_with_the_groups_of_its_optimizer() -> None:
    shown = page("fashion_vit_p", {"optim": "muon", "optim.layer_decay": 0.5}, None)
    groups = shown.values["groups"]
    assert {g["parameters"] for g in groups} == {HIDDEN, WEIGHTS, EXEMPT}
    assert sorted({g["peak_lr"] for g in groups}) == [0.002 * 0.5**i for i in range(5, -1, -1)]
    assert {g["weight_decay"] for g in groups if g["parameters"] == EXEMPT} == {0.0}
    assert {g["weight_decay"] for g in groups if g["parameters"] != EXEMPT} == {0.1}
    whole = sum(p.numel() for p in create_model("vit_p_tiny", in_chans=1).parameters())
    assert sum(g["numbers"] for g in groups) == whole
    rows = table(shown, "Groups of the optimizer")
    assert rows[-1][0] == EXEMPT
    assert rows[-1][3:] == ("0.002", "0")


def test_an_optimizer_that_would_have_nothing_to_do_is_a_problem_of_its_recipe() -> None:
    shown = page("fashion_vit_p", {"optim": "muon", "train.freeze": ("backbone",)}, None)
    assert shown.values["groups"] == []
    assert "hidden weight matrices" in " ".join(shown.values["problems"])
