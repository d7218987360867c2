"""A run starts from other weights: what fits is taken, what is fitted is said, none guessed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.errors import CheckpointError, ConfigError
from vitc.models.zoo import create_model
from vitc.resolve import load_config
from vitc.runs.checkpoint import load_weights_of
from vitc.runs.folder import Run
from vitc.training.build import initial_model
from vitc.training.evaluate import load_model
from vitc.training.loop import run
from vitc.weights import load as weights_module


def short(**overrides: Any) -> RunConfig:
    base: dict[str, Any] = {"train.epochs": 1, "train.threads": 1, "data.max_train": 64}
    return load_config("debug", **{**base, **overrides})


def first(config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run stopped by its budget after the first step, so all but unmoved."""
    run(config, folder, quiet=True)
    return load_weights_of(folder, ema=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the synthetic images: ten classes, 32 pixels."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(short(**{"train.epochs": 4, "train.seed": 5, "optim.ema.horizon": 1.0}), folder, quiet=True)
    return folder


def still(**overrides: Any) -> RunConfig:
    """A run whose learning rate moves nothing that can be seen."""
    return short(**{"optim.lr": 1e-12, "optim.weight_decay": 0.0, **overrides})


def average(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights_of(folder)


def events(folder: Path) -> str:
    return (folder / "events.log").read_text()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-6)


def test_a_run_starts_from_the_average_of_another(trained: Path, tmp_path: Path) -> None:
    begun = first(still(init=str(trained)), tmp_path / "r")
    theirs = average(trained)
    moving = [n for n in theirs if "running" not in n and "num_batches" not in n]
    assert all(close(begun[n], theirs[n]) for n in moving)
    assert f"starting from {trained}" in events(tmp_path / "r")
    name = "blocks.0.attn.qkv.weight"  # the average starts there too
    assert close(average(tmp_path / "r")[name], theirs[name])


@pytest.mark.parametrize("kind", ["run", "file"])
def test_the_weights_are_read_and_hashed_once(
    kind: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = trained
    if kind == "file":
        start = tmp_path / "w.safetensors"
        assert main(["convert", str(trained), str(start)]) == 0
    reads = []
    for reader in ("load_weights_of", "read_weights_file", "_digest"):
        original = getattr(weights_module, reader)

        def counting(
            *args: Any, original: Any = original, name: str = reader, **kwargs: Any
        ) -> Any:
            reads.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(weights_module, reader, counting)
    first(still(init=str(start)), tmp_path / "r")
    assert reads == (["load_weights_of", "_digest"] if kind == "run" else ["read_weights_file"])


def test_the_raw_weights_can_be_asked_for(trained: Path, tmp_path: Path) -> None:
    config = still(**{"init.weights": str(trained), "init.average": "raw"})
    begun = first(config, tmp_path / "r")
    assert not close(begun["head.weight"], average(trained)["head.weight"])


def test_other_classes_leave_the_head_fresh_and_another_size_resamples(
    trained: Path, tmp_path: Path, photo_folder: Any
) -> None:
    photos = photo_folder(classes=3, count=20)
    config = still(
        **{
            "init": str(trained),
            "data": str(photos),
            "model.img_size": 48,
            "train.batch": 16,
            "data.max_train": 32,
        }
    )
    begun = first(config, tmp_path / "r")
    assert begun["head.weight"].shape[0] == 3
    assert float(begun["head.weight"].abs().max()) < 1e-6
    assert begun["pos_embed"].shape[1] == 1 + 36
    assert close(begun["blocks.1.mlp.fc1.weight"], average(trained)["blocks.1.mlp.fc1.weight"])
    notes = events(tmp_path / "r")
    assert "the head is fresh: the weights have other classes" in notes
    assert "pos_embed was resampled from 4x4 to 6x6" in notes
    assert "images are prepared as for the weights" in notes
    assert load_config(tmp_path / "r").data.mean == tuple(Run(trained).data["mean"])


def test_only_the_named_parts_are_taken_and_stay_so_if_frozen(
    trained: Path, tmp_path: Path
) -> None:
    part = ["stem.layers"]
    config = still(**{"init.weights": str(trained), "init.only": part, "train.freeze": part})
    begun, fresh = first(config, tmp_path / "r"), initial_model(config, 10).state_dict()
    theirs = average(trained)
    stem = [n for n in theirs if n.startswith("stem.layers.") and "num_batches" not in n]
    assert all(torch.equal(begun[n], theirs[n]) for n in stem)
    assert close(begun["stem.proj.weight"], fresh["stem.proj.weight"])


def test_a_run_that_is_under_way_no_longer_needs_the_weights(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    config = short(**{"init": str(copy), "train.epochs": 2, "train.save_every_steps": 1})
    run(config, tmp_path / "whole", quiet=True)
    run(config, tmp_path / "cut", quiet=True)
    (tmp_path / "cut" / "summary.json").unlink()  # as if killed at the very end
    shutil.rmtree(copy)
    result = run(load_config(tmp_path / "cut"), tmp_path / "cut", quiet=True)
    assert result.status == "done"


def test_weights_from_a_file_need_mean_and_std(trained: Path, tmp_path: Path) -> None:
    save_file(average(trained), tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match=r"does not state the mean.*\n.*--data\.mean"):
        run(still(init=str(tmp_path / "bare.safetensors")), tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()
    given = {"data.mean": [0.5] * 3, "data.std": [0.25] * 3}
    config = still(init=str(tmp_path / "bare.safetensors"), **given)
    result = run(config, tmp_path / "r", quiet=True)
    assert result.status == "done"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model": "vit_p_tiny"}, ("stem",)),
        ({"model.depth": 2}, ("unexpected", "blocks.2")),
        ({"model.embed_dim": 32}, ("(", "32")),
    ],
)
def test_weights_of_another_model_are_refused_and_leave_no_folder(
    trained: Path, tmp_path: Path, overrides: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        run(still(init=str(trained), **overrides), tmp_path / "r", quiet=True)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_a_fresh_head_hides_no_other_misfit(trained: Path, tmp_path: Path) -> None:
    theirs, file = average(trained), tmp_path / "saved" / "model.safetensors"
    file.parent.mkdir()
    save_file({**theirs, "blocks.9.norm1.weight": torch.ones(64)}, file)
    record = '{"library": "vitc", "classes": ["a", "b"], "preprocessing": null}'
    (file.parent / "config.json").write_text(record)
    other = short(init=str(file.parent), **{"data.mean": [0.5] * 3, "data.std": [0.5] * 3})
    with pytest.raises(CheckpointError, match=r"another model.*unexpected: blocks\.9\.norm1"):
        run(other, tmp_path / "r", quiet=True)
    assert not (tmp_path / "r").exists()


def test_the_runs_own_folder_is_no_start(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["train", "debug", "--init", str(trained), "--out", str(trained), "--overwrite"])
    assert code == 2
    assert "the run itself would be written to" in capsys.readouterr().err
    assert (trained / "summary.json").exists()


def test_a_missing_start_is_an_error_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["train", "debug", "--init", str(tmp_path / "no"), "--out", str(tmp_path / "r")])
    assert code == 2
    assert str(tmp_path / "no") in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    (tmp_path / "base").mkdir()
    assert main(["train", "debug", "--init", str(tmp_path / "bas"), "--dry-run"]) == 2
    assert f"Did you mean '{tmp_path / 'base'}'?" in capsys.readouterr().err


def test_settings_of_the_start_need_a_start() -> None:
    with pytest.raises(ConfigError, match=r"init\.only has no effect without init\.weights"):
        load_config("debug", **{"init.only": ["stem"]})
    with pytest.raises(ConfigError, match="init\\.weights is open"):
        load_config("debug", **{"init.weights": ""})


def test_bgr_weights_of_pycls_are_made_rgb_and_their_mean_turned(tmp_path: Path) -> None:
    from vitc.weights.layouts import from_vitc

    torch.manual_seed(0)
    model = create_model("vit_c_tiny", 10)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    ours = model.state_dict()
    torch.save({"model_state": from_vitc(ours, "pycls")}, tmp_path / "w.pyth")
    config = still(init=str(tmp_path / "w.pyth"))
    begun = first(config, tmp_path / "r")
    name = "stem.layers.0.conv.weight"
    assert close(begun[name], ours[name].flip(1))
    assert load_config(tmp_path / "r").data.mean == (0.485, 0.456, 0.406)
    assert "reversed" in events(tmp_path / "r")


def test_layer_decay_with_a_frozen_backbone_has_no_effect_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_decay 0\.7 has no effect"):
        load_config("debug", **{"optim.layer_decay": 0.7, "train.freeze": ["backbone"]})


def test_a_config_edited_by_hand_names_the_tensors_that_do_not_fit(
    trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    values = json.loads((copy / "config.json").read_text())
    values["model"]["depth"] = 2
    (copy / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"unexpected: blocks\.2"):
        load_model(copy)
