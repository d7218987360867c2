"""The model card: the run's own numbers, nothing invented, and no stranger's name has power."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import vitc
from vitc.cli.parser import take_settings
from vitc.config import RunConfig, to_dict
from vitc.deploy import card as cards
from vitc.deploy.card import results_of, training_command
from vitc.deploy.saved import Saved
from vitc.errors import CheckpointError, VitcError
from vitc.recipes import RECIPES
from vitc.resolve import load_config, resolve_config
from vitc.runs.results import keep_test
from vitc.views.markdown import code, quoted

EVIL = [
    "`code` **bold** _x_ ![i](http://evil/i.png) [l](javascript:alert(1))",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "line\n\n# Heading\n---\nlicense: mit\n```\n</details>",
    '"quote: yes" \\ \' }{ & | $x$ @user #1',
    "``` ````` `",
    "\u202eright to left\x1b[31m\u2028\x00",
    "",
    "x" * 5000,
    "---",
]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def model_card(run: Path, weights: Literal["ema", "raw"] = "ema") -> str:
    """The card that is saved with a run's model."""
    with tempfile.TemporaryDirectory() as folder:
        saved = vitc.save_pretrained(run, Path(folder) / "saved", weights=weights)
        return (saved / "README.md").read_text()


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_config(run: Path, **tables: dict[str, Any]) -> None:
    config = json.loads((run / "config.json").read_text())
    change(run / "config.json", **{name: config[name] | new for name, new in tables.items()})


def front_matter(card: str) -> list[str]:
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    return front.splitlines()


def tokens(card: str) -> list[Token]:
    """Every token of the card's Markdown, those within paragraphs too."""
    body = card.split("---\n", 2)[2]
    blocks = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    return [t for block in blocks for t in (block, *(block.children or []))]


# -- what it contains ------------------------------------------------------------------------------


def test_it_has_the_numbers_of_the_run(trained: Path) -> None:
    card = model_card(trained)
    summary, record = (
        json.loads((trained / name).read_text()) for name in ("summary.json", "data.json")
    )
    results = results_of(trained, "ema")
    assert results is not None
    assert results["n"] == record["counts"]["val"]
    cost = vitc.complexity(vitc.create_model("vit_c_tiny", 10))
    low, high = results["top1_low"], results["top1_high"]
    for expected in (
        f"| top-1 | {summary['top1']:.2f} % | {low:.2f} to {high:.2f} % |",
        f"On {results['n']} validation images",
        ", after the last epoch:",
        f"`train` {record['counts']['train']}",
        record["fingerprint"],
        f"Parameters: {cost.params:,}",
        f"{cost.flops:,} flops",
        f"{summary['images_per_second']:,.1f} images/s",
        summary["versions"]["torch"],
        "no measurement on test images",
        *(f"`{name}`" for name in record["classes"]),
    ):
        assert expected in card, expected
    lines = front_matter(card)
    assert lines[:2] == ["library_name: vitc", "pipeline_tag: image-classification"]
    assert "- vision-transformer" in lines
    value = next(line for line in lines if line.strip().startswith("value:"))
    assert float(value.partition(":")[2]) == pytest.approx(summary["top1"] / 100, abs=1e-6)
    assert not any(line.startswith("license") for line in lines)


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top5_is_left_out_for_up_to_five_classes(trained: Path, classes: int, shown: bool) -> None:
    model = load_config(trained).model
    saved = Saved(model, classes, None, None, results_of(trained, "ema"))
    lines = cards.card(saved, {}, None, run=trained).splitlines()
    assert any(line.startswith("| top-5") for line in lines) == shown
    assert any(line.startswith("| top-1") for line in lines)


def test_raw_weights_and_test_images_have_their_own_numbers(run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines = [m | {"top1": 61.0, "top1_raw": 52.0} if m["kind"] == "eval" else m for m in lines]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    step = json.loads((run / "summary.json").read_text())["step"]
    for weights, top1 in (("raw", 43.21), ("ema", 44.44)):
        result = {"n": 128, "top1": top1, "top1_low": top1 - 8, "top1_high": top1 + 8}
        keep_test(run, {"step": step, "weights": weights, **result})
    ema, raw = model_card(run), model_card(run, "raw")
    assert all(text in ema for text in ("61.00 %", "average (EMA)"))
    assert all(text in raw for text in ("52.00 %", "not averaged"))
    assert "61.00 %" not in raw
    assert "On 128 test images: top-1 43.21 %" in raw
    assert "On 128 test images: top-1 44.44 % (95 % interval 36.44 to 52.44)" in ema


def test_a_run_that_has_not_ended_has_no_results(run: Path) -> None:
    change(run / "summary.json", step=10**6)  # evaluated at an earlier step
    assert results_of(run, "ema") is None
    change(run / "summary.json", status="interrupted")
    interrupted = model_card(run)
    (run / "summary.json").unlink()
    for text in (interrupted, model_card(run)):
        assert "The run has not finished" in text
        assert "metrics:" not in front_matter(text)
        assert "%" not in text.partition("## Results")[2].partition("## Cost")[0]


@pytest.mark.parametrize("value", [None, "much", float("inf"), True, [1], {"a": 1}])
def test_values_of_the_wrong_type_count_as_unknown(run: Path, value: Any) -> None:
    names = "step total_steps train_seconds images_per_second versions hardware device git_commit"
    change(run / "summary.json", **dict.fromkeys(names.split(), value))
    change(run / "data.json", counts=value, fingerprint=value, notes=value, source=value)
    text = model_card(run)
    assert "the number is not known" in text or isinstance(value, dict)
    assert "Training time is not known" in text


def test_no_run_and_a_config_of_another_model_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(VitcError, match="not a run folder"):
        model_card(tmp_path)
    change_config(run, model={"depth": 10**9})
    with pytest.raises(CheckpointError, match="depth 1000000000"):
        model_card(run)


def test_a_model_without_a_run_says_that_the_rest_is_unknown(tmp_path: Path) -> None:
    saved = vitc.save_pretrained(vitc.create_model("vit_p_tiny", 2), tmp_path / "saved")
    card = (saved / "README.md").read_text()
    assert "Not known: this was saved from a model in memory" in card
    assert "The preprocessing of its images is not known" in card
    assert "metrics:" not in front_matter(card)
    assert f"{vitc.complexity(vitc.create_model('vit_p_tiny', 2)).params:,}" in card


# -- names of strangers ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVIL)
def test_a_name_in_a_code_span_is_nothing_but_that(name: str) -> None:
    (inline,) = (
        t for t in MarkdownIt("commonmark").parse(f"- {code(name)} end") if t.type == "inline"
    )
    assert [t.type for t in inline.children or []] == ["code_inline", "text"]
    assert json.loads(quoted(name)).isprintable()
    assert "\n" not in quoted(name)


def test_no_name_of_a_stranger_becomes_markdown_html_or_yaml(run: Path) -> None:
    plain = model_card(run)
    classes = [f"{EVIL[i % len(EVIL)]}{i}" for i in range(10)]
    evil = EVIL[0] + EVIL[1] + EVIL[2] + EVIL[3]
    names = dict.fromkeys(("source", "fingerprint"), evil)
    change(run / "data.json", classes=classes, notes=[evil], counts={evil: 3}, **names)
    names = dict.fromkeys(("device", "git_commit"), evil)
    change(run / "summary.json", versions={evil: evil}, hardware={"cpu": evil}, **names)
    change_config(run, model={"name": evil}, init={"weights": evil})
    change(run / "config.json", name=evil)
    card = model_card(run)
    assert len(front_matter(card)) == len(front_matter(plain))
    for line in front_matter(card):
        key, _, value = line.partition(": ")
        assert "\x1b" not in line
        if value.startswith('"'):
            assert isinstance(json.loads(value), str)
        assert key.strip("- ") != "license"
    for token in tokens(card):
        if token.type in ("html_block", "html_inline"):
            assert token.content.strip() in (
                "<details><summary>All settings</summary>",
                "</details>",
            )
        assert token.type not in ("image", "hr")
        if token.type == "link_open":
            assert str(token.attrs["href"]).startswith("https://arxiv.org/")
    headings = [t.tag for t in tokens(card) if t.type == "heading_open"]
    assert headings == [t.tag for t in tokens(plain) if t.type == "heading_open"]


def test_the_folders_of_the_machine_are_left_out(run: Path) -> None:
    data = {"source": "folder", "path": "/home/alice/patients"}
    init = {"init.weights": "/home/alice/start.safetensors"}
    change_config(run, data=data, init={"weights": init["init.weights"]})
    text = model_card(run)
    assert not any(name in text for name in ("alice", "secret_home"))
    assert "`start.safetensors`" in text
    assert "`DATA` stands for the folder" in text
    command = training_command(resolve_config("fashion_vit_c", **init))
    assert command == "vitc train fashion_vit_c --init.weights start.safetensors"


# -- the command to train it again -----------------------------------------------------------------

CHANGES: list[dict[str, Any]] = [
    {},
    {"optim.lr": 0.1 + 0.2, "train.epochs": 7, "data.augment.flip": 0.0},
    {"model": "vit_p_tiny", "train.deterministic": True},
    {"optim": "sgd", "optim.nesterov": False},
    {"data.mean": [0.1], "data.std": [0.2], "train.freeze": ["stem", "blocks.0"]},
    {"train.threads": 2, "optim.clip_norm": None, "train.precision": "fp32"},
]


@pytest.mark.parametrize("settings", CHANGES)
def test_the_command_gives_the_same_settings_again(settings: dict[str, Any]) -> None:
    config = resolve_config("fashion_vit_c", **settings)
    command = training_command(config)
    assert command is not None
    vitc_, train_, *words = shlex.split(command)
    given, rest = take_settings(words)
    assert (vitc_, train_, rest) == ("vitc", "train", ["fashion_vit_c"])
    assert to_dict(resolve_config("fashion_vit_c", **given)) == to_dict(config)


def test_a_recipe_as_it_is_needs_its_name_only(tmp_path: Path) -> None:
    for recipe in RECIPES:
        assert training_command(resolve_config(recipe)) == f"vitc train {recipe}"
    config = resolve_config("cifar10_vit_c", **{"data.path": str(tmp_path)})
    assert training_command(config) == "vitc train cifar10_vit_c --data.path DATA"


def test_without_a_recipe_there_is_no_command_but_the_settings(
    trained: Path, tmp_path: Path
) -> None:
    assert training_command(RunConfig(name="mine")) is None
    card = model_card(trained)
    assert "vitc train SETTINGS.json" in card
    file = tmp_path / "SETTINGS.json"
    file.write_text(card.partition("```json\n")[2].partition("\n```")[0])
    assert load_config(file) == load_config(trained)
