"""`vitc show MODEL`: its cost, the stem beside a block, the paper's print beside the count."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from vitc.cli.main import main
from vitc.deploy.show import page
from vitc.deploy.show_model import model_page
from vitc.models.complexity import parts
from vitc.models.zoo import create_model, model_config
from vitc.views.model import Table
from vitc.views.text import write


def told(shown: Any) -> str:
    stream = io.StringIO()
    write(shown.parts, stream)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["vit_p_1gf", "vit_c_ln_4gf", "vit_p_tiny", "vit_c_tiny"])
def test_every_vit_tells_its_stems_flops_beside_one_blocks(name: str) -> None:
    shown = model_page(model_config(name))
    cost = {p.name.partition(".")[0]: p.each.flops for p in parts(create_model(name))}
    ratio = cost["stem"] / cost["blocks"]
    assert shown.values["stem_over_block"] == ratio
    assert f"Its stem costs {ratio:.2f} of one block" in told(shown)


@pytest.mark.parametrize(
    ("stem", "settings"),
    [
        ("dual_patchnorm", {"model.stem.patch_size": 8, "model.qk_norm": True}),
        ("scaled_relu", {"model.stem.width": 16, "model.registers": 4}),
        ("overlap", {"model.stem.kernel_size": 11}),
        ("depthwise", {"model.stem.channels": (8, 16, 32)}),
        ("norm_free", {}),
        ("conv", {"model.stem.norm": "ln", "model.stem.act": "gelu"}),
    ],
)
def test_a_model_with_a_rival_stem_is_shown_with_the_stems_cost(
    stem: str, settings: dict[str, Any]
) -> None:
    shown = page("vit_c_tiny", {"model.stem": stem, **settings}, None)
    assert shown.values["settings"]["stem"]["kind"] == stem
    assert shown.values["stem_over_block"] > 0.1
    assert "reported" not in shown.values
    assert "of one block." in told(shown)


def test_the_command_takes_a_rival_stem_and_answers_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "show vit_c_tiny --model.stem dual_patchnorm --model.stem.patch_size 8 --json"
    assert main(command.split()) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["settings"]["stem"] == {"kind": "dual_patchnorm", "patch_size": 8}


def table(shown: Any, title: str) -> list[tuple[str, ...]]:
    return next(list(p.rows) for p in shown.parts if isinstance(p, Table) and title in p.title)


def test_a_stem_of_table_3_is_shown_beside_what_is_printed_and_the_slip_is_said() -> None:
    shown = model_page(model_config("vit_s1_4gf"))
    rows = table(shown, "Table 3")
    assert rows[0] == ("flops", "422.11 M", "422 M", "+0.0 %")
    assert shown.values["reported_stem"] == {"flops": 422e6, "params": 0.8e6, "activations": 1.3e6}
    assert "42" in shown.values["slip"]
    assert "52" in shown.values["slip"]
    assert shown.values["slip"] in told(shown)
    patchify = model_page(model_config("vit_p_4gf"))
    assert table(patchify, "Table 3")[2] == ("activations", "0.08 M", "0.8 M", "-90.6 %")
    assert table(patchify, "Table 1")[0] == ("flops", "3.91 G", "3.9 G", "+0.2 %")
    assert "0.08 M must be meant" in told(patchify)


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
