"""A saved model: there and back with equal logits, and whatever a stranger's folder may hold."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import vitc
from vitc.cli.main import main
from vitc.deploy import save as pretrained
from vitc.deploy.predict import Predictor
from vitc.errors import CheckpointError, ConfigError, VitcError
from vitc.models.config import TimmConfig
from vitc.models.stems import ConvStem
from vitc.models.timm import import_peer
from vitc.training.evaluate import load_model

Capture = pytest.CaptureFixture[str]
PREPARED = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.2, 0.1],
    "channels": "rgb",
    "interpolation": "bilinear",
    "crop": 0.875,
    "img_size": [32, 32],
}


def tiny(num_classes: int = 4, name: str = "vit_c_tiny", **settings: Any) -> nn.Module:
    """A small model, every tensor and buffer filled with numbers that are not the default."""
    model = vitc.create_model(name, num_classes, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 + 0.05)
            else:
                tensor.fill_(7)
    return model.eval()


def logits(model: nn.Module, size: int = 32) -> torch.Tensor:
    image = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        out: torch.Tensor = model(image)
    return out


@pytest.fixture(scope="module")
def kept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "saved"
    return vitc.save_pretrained(tiny(), out, classes=list("abcd"), preprocessing=PREPARED)


@pytest.fixture
def folder(kept_folder: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test, most of which damage it."""
    return Path(shutil.copytree(kept_folder, tmp_path / "saved"))


def changed(folder: Path, name: str = "config.json", **values: Any) -> Path:
    """The folder with other values in one of its files."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


# -- there and back --------------------------------------------------------------------------------


def test_either_weights_of_a_run_come_back_with_equal_logits(trained: Path, tmp_path: Path) -> None:
    found = []
    for weights in ("ema", "raw"):
        saved = vitc.save_pretrained(trained, tmp_path / weights, weights=weights)
        model = vitc.from_pretrained(saved)
        assert not model.training
        assert torch.equal(logits(model), logits(load_model(trained, weights)[0]))
        found.append(logits(model))
    assert not torch.equal(*found)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_saved_model_prepares_and_predicts_as_its_run(
    trained: Path, tmp_path: Path, fit: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    changed(run, "data.json", fit=fit)
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    ours, theirs = Predictor(vitc.save_pretrained(run, tmp_path / "saved")), Predictor(run)
    assert np.array_equal(ours([image]).probs, theirs([image]).probs)
    assert (ours.classes, ours.notes) == (theirs.classes, ())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_c_tiny", {}),
        ("vit_p_tiny", {"global_pool": "avg", "class_token": False}),
        ("vit_p_tiny", {"img_size": (24, 40)}),
        ("vit_c_tiny", {"num_classes": 0}),
        ("vit_c_tiny", {"in_chans": 1}),
        pytest.param("resnet_50", {}, marks=pytest.mark.slow),
        ("regnety_1gf", {}),
        pytest.param("effnet_b2", {}, marks=pytest.mark.slow),
    ],
)
def test_a_model_comes_back_from_its_folder_whole(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny(name=name, **{"num_classes": 4, **settings})
    again = vitc.from_pretrained(vitc.save_pretrained(model, tmp_path / "saved"))
    first, second = model.state_dict(), again.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert type(again.config) is type(model.config)
    assert all(p.requires_grad for p in again.parameters())
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()])


def test_a_loaded_model_can_be_trained_and_replace_its_own_folder(folder: Path) -> None:
    model = vitc.from_pretrained(folder).train()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    before = logits(model.eval())
    with pytest.raises(ConfigError, match="not empty"):
        vitc.save_pretrained(model, folder)
    vitc.save_pretrained(model, folder, overwrite=True)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(vitc.from_pretrained(folder)), before)
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_another_number_of_classes_puts_a_fresh_head_on_it(folder: Path) -> None:
    model: Any = vitc.from_pretrained(folder, num_classes=7)
    assert logits(model).shape == (2, 7)
    assert not model.head.weight.any()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(model.forward_features(image), tiny().forward_features(image))  # type: ignore[operator]
    assert logits(vitc.from_pretrained(folder, num_classes=0)).shape == (2, model.num_features)
    for wrong in (-1, True, "3", 2.0):
        with pytest.raises(ConfigError, match="num_classes is"):
            vitc.from_pretrained(folder, num_classes=wrong)  # type: ignore[arg-type]


def test_half_precision_is_loaded_as_float32_and_draws_no_random_number(tmp_path: Path) -> None:
    saved = vitc.save_pretrained(tiny().half(), tmp_path / "saved")
    assert load_file(saved / "model.safetensors")["pos_embed"].dtype == torch.float16
    before = torch.get_rng_state()
    assert vitc.from_pretrained(saved).pos_embed.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)


def test_a_timm_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    try:
        import_peer("timm")
    except ImportError:
        pytest.skip("timm is not installed: its saved models are NOT tested here")
    model = tiny(3, "timm:vit_tiny_patch16_224", img_size=32)
    again = vitc.from_pretrained(vitc.save_pretrained(model, tmp_path / "saved"))
    assert isinstance(again.config, TimmConfig)
    assert torch.equal(logits(again), logits(model))


# -- what is written -------------------------------------------------------------------------------


def test_the_files_say_what_they_are(trained: Path, tmp_path: Path) -> None:
    saved = vitc.save_pretrained(trained, tmp_path / "saved")
    assert {p.name for p in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    values = json.loads((saved / "config.json").read_text())
    assert values["format"] == 1
    assert values["vitc_version"] == vitc.__version__
    assert values["model"]["kind"] == "vit"
    assert values["num_classes"] == len(values["classes"]) == 10
    summary = json.loads((trained / "summary.json").read_text())
    assert values["results"]["top1"] == summary["top1"]
    assert values["results"]["top1_low"] < summary["top1"] < values["results"]["top1_high"]
    with open(saved / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert header["__metadata__"] == {"format": "pt"}
    for name in ("config.json", "README.md"):
        assert str(trained.parent) not in (saved / name).read_text()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in saved.iterdir()}
    assert len(modes) == 1


def test_a_folder_with_other_files_is_never_replaced(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    for folder in (tmp_path, trained):
        before = sorted(p.name for p in folder.iterdir())
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match=r"not empty|not replaced: it holds '"):
                vitc.save_pretrained(tiny(), folder, overwrite=overwrite)
        assert sorted(p.name for p in folder.iterdir()) == before


@pytest.mark.parametrize(("step", "calls"), [("sync_folder", 1), ("rename", 2)])
def test_a_failed_write_leaves_the_old_model_and_no_rest(
    step: str, calls: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk before the new model is in place, or the second of two renames."""
    owner, made = os if step == "rename" else pretrained, []
    work = getattr(owner, step)

    def fails(*args: Any) -> None:
        made.append(args)
        if len(made) == calls:
            raise OSError(28, "No space left on device")
        work(*args)

    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(CheckpointError, match="No space left"):
        vitc.save_pretrained(tiny(2), folder, overwrite=True)
    assert torch.equal(logits(vitc.from_pretrained(folder)), logits(tiny()))
    assert [p.name for p in folder.parent.iterdir()] == ["saved"]


def test_the_preprocessing_of_a_load_report_can_be_saved(folder: Path, tmp_path: Path) -> None:
    model = vitc.create_model("vit_c_tiny", 4)
    report = vitc.load_weights(model, folder)
    again = vitc.save_pretrained(model, tmp_path / "again", preprocessing=report.preprocessing)
    assert torch.equal(logits(vitc.from_pretrained(again)), logits(tiny()))
    assert json.loads((again / "config.json").read_text())["preprocessing"] == PREPARED


def test_another_size_and_weights_that_share_memory_come_back(tmp_path: Path) -> None:
    model: Any = tiny(name="vit_p_tiny")
    model.set_input_size(40)
    model.blocks[1].norm1.weight = model.blocks[0].norm1.weight
    again = vitc.from_pretrained(vitc.save_pretrained(model, tmp_path / "saved"))
    assert torch.equal(logits(again, 40), logits(model, 40))


def test_settings_that_make_no_sense_together_are_refused(trained: Path, tmp_path: Path) -> None:
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (trained, {"classes": ["a"]}, "have no effect with a run"),
        (trained, {"weights": "best"}, "must be 'ema' or 'raw'"),
        (tiny(), {"weights": "raw"}, "no effect with a model"),
        (tiny().to("meta"), {}, "meta device"),
        (tiny().to(torch.float8_e4m3fn), {}, "float8_e4m3fn, which cannot be saved"),
        (tiny(), {"classes": ["a"]}, "1 classes for 4 outputs"),
        (tiny(), {"preprocessing": {"mean": [0.5]}}, "'std' is missing"),
        (tiny(), {"preprocessing": PREPARED | {"mean": [0.5]}}, "is not 3 numbers"),
        (
            tiny(),
            {"preprocessing": PREPARED | {"channels": "gray"}},
            "'gray', but the model takes 3",
        ),
        (tiny(), {"preprocessing": PREPARED | {"size": 3}}, "'size' is unknown"),
        (tiny(), {"preprocessing": "rgb"}, "preprocessing is a str; it must be a table"),
        (tiny(), {"classes": "abcd"}, "not a list of strings"),
        (nn.Linear(2, 2), {}, "A Linear has no config of this library"),
        (3, {}, "A int cannot be saved"),
        (tmp_path / "absent", {}, "There is no run folder"),
        (tmp_path, {}, "not a run folder"),
    ]
    for what, settings, message in wrong:
        with pytest.raises(ConfigError, match=message):
            vitc.save_pretrained(what, tmp_path / "new" / "saved", **settings)
    assert not (tmp_path / "new").exists()


def test_a_stem_that_the_config_does_not_name_is_refused(tmp_path: Path) -> None:
    class Twin(ConvStem):
        """The same tensors, another computation."""

    model: Any = tiny()
    model.stem.__class__ = Twin
    with pytest.raises(ConfigError, match="stem is a Twin, but its config names ConvStem"):
        vitc.save_pretrained(model, tmp_path / "saved")
    model.stem = nn.Conv2d(3, 64, 8, 8)
    with pytest.raises(ConfigError, match="differs from its config"):
        vitc.save_pretrained(model, tmp_path / "saved")


# -- folders of strangers --------------------------------------------------------------------------

LONG_STEM = {"kind": "conv", "channels": [8] * 40_000, "strides": [2, 2, 2] + [1] * 39_997}


def refused(folder: Path, message: str) -> CheckpointError:
    with pytest.raises(CheckpointError, match=message) as caught:
        vitc.from_pretrained(folder)
    return caught.value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 2}, r"newer vitc \(format 2, here 1\)"),
        ({"format": 0}, "there is no format 0"),
        ({"format": "1"}, "another library"),
        ({"library": "timm"}, "another library"),
        ({"extra": 1}, "'extra' is unknown"),
        ({"model": []}, "'model' is not a table"),
        ({"num_classes": -1}, "not a number of classes"),
        ({"num_classes": True}, "not a number of classes"),
        ({"num_classes": 10**12}, "not a number of classes"),
        ({"classes": ["a"]}, "1 classes for 4 outputs"),
        ({"classes": [1, 2, 3, 4]}, "not a list of strings"),
        ({"classes": "abcd"}, "not a list of strings"),
        ({"results": 3}, "'results'"),
        ({"fit": ["crop"]}, "'fit'"),
        ({"preprocessing": PREPARED | {"std": [0.1, 0.0, 0.1]}}, "std is not above 0"),
        ({"preprocessing": PREPARED | {"mean": [1, float("nan"), 1]}}, "is not 3 numbers"),
        ({"preprocessing": PREPARED | {"channels": []}}, "channels is none of"),
        ({"preprocessing": PREPARED | {"crop": 0}}, "crop is not in"),
        ({"preprocessing": PREPARED | {"img_size": [10**9, 32]}}, "at most 4096 pixels"),
        ({"preprocessing": PREPARED | {"interpolation": 3}}, "interpolation is not a string"),
    ],
)
def test_each_wrong_value_of_a_config_has_its_message(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    refused(changed(folder, **values), message)


def test_a_config_that_is_no_json_object_or_lacks_a_value_is_refused(folder: Path) -> None:
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for content in ("{", "[]", "\udc80", '{"a": ' * 5000):
        file.write_text(content, errors="surrogateescape")
        refused(folder, r"config\.json is damaged")
    for name in values.keys() - {"schema"}:  # folders of the first schema have none
        file.write_text(json.dumps({k: v for k, v in values.items() if k != name}))
        refused(folder, "another library" if name in ("format", "library") else f"no '{name}'")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": "3"}, "it must be an integer"),
        ({"dept": 3}, "Did you mean 'model.depth'"),
        ({"kind": "vti"}, "Unknown model 'vti'"),
        ({"kind": "timm", "name": "timm:hf-hub:evil/model"}, "must be timm:NAME|nknown"),
        ({"stem": "evil"}, "Unknown stem 'evil'|Unknown model.stem"),
        ({"num_heads": 3}, "not divisible by"),
        ({"depth": 4}, r"13 missing: .*blocks\.3|missing"),
        ({"depth": 2}, "unexpected"),
        ({"embed_dim": 128}, "of another shape"),
        ({"img_size": 64}, "pos_embed"),
        # of terabytes, or of a billion blocks: nothing of that size is made
        ({"depth": 10**9}, "at most 1000"),
        ({"depth": 1000}, "more tensors than the weights"),
        ({"embed_dim": 2 * 10**9}, "at most 32768"),
        ({"embed_dim": 32_768}, "of another shape"),
        ({"mlp_ratio": 1e300}, r"in \(0, 64\]"),
        (
            {"mlp_ratio": float("nan")},
            r"not that of\s+these|no hidden width",
        ),
        ({"img_size": 65_536}, "at most 16384"),
        ({"img_size": 16_384}, "pos_embed|cannot be of"),
        ({"stem": LONG_STEM}, "more tensors than the weights"),
    ],
)
def test_a_config_of_another_model_is_refused_before_it_is_built(
    folder: Path, settings: dict[str, Any], message: str
) -> None:
    values = json.loads((folder / "config.json").read_text())
    refused(changed(folder, model=values["model"] | settings), message)


def test_a_custom_stem_that_is_not_trusted_is_not_imported(folder: Path, tmp_path: Path) -> None:
    stem = folder / "sources" / "evil.py"
    stem.parent.mkdir()
    stem.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    values = json.loads((folder / "config.json").read_text())
    for source in (str(stem), "evil.py"):
        model = values["model"] | {"stem": {"kind": "custom", "source": f"{source}:Evil"}}
        with pytest.raises(ConfigError):
            vitc.from_pretrained(changed(folder, model=model))
    assert not (tmp_path / "ran").exists()


STEM = """
from torch import nn
class Mine(nn.Module):
    reduction = 8
    def __init__(self, in_chans, embed_dim):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, embed_dim, 8, 8)
    def forward(self, x):
        return self.conv(x)
"""


def test_a_custom_stem_is_saved_as_a_copy(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(STEM)
    model = tiny(stem=f"{file}:Mine")
    saved = vitc.save_pretrained(model, tmp_path / "saved")
    assert [p.read_text() for p in (saved / "sources").iterdir()] == [STEM]
    assert str(tmp_path) not in (saved / "config.json").read_text()
    file.unlink()
    assert torch.equal(logits(vitc.from_pretrained(saved)), logits(model))


def test_weights_that_are_damaged_or_pickles_are_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    whole = file.read_bytes()

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for content in (whole[: len(whole) // 2], b"", b"\xff" * 8 + whole[8:]):
        file.write_bytes(content)
        refused(folder, "damaged or not a safetensors")
    torch.save(Payload(), file)
    refused(folder, "damaged or not a safetensors")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_model_are_named_tensor_by_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["head.weight"] = torch.zeros(5, 64)
    tensors["blocks.0.norm1.bias"] = tensors["blocks.0.norm1.bias"].int()
    tensors["evil\x1b[31m"] = tensors.pop("norm.weight")
    save_file(tensors, file)
    text = refused(folder, "1 missing: norm.weight").message
    shapes = "head.weight ((5, 64) in the file, (4, 64) in the model)"
    assert all(part in text for part in (shapes, "(64,) integers in the file", "\\x1b[31m"))
    assert "\x1b" not in text


def test_what_is_no_saved_model_is_refused(trained: Path, folder: Path, tmp_path: Path) -> None:
    for path, settings, message in (
        (trained, {}, "is a run folder[^$]*vitc save"),
        (folder / "config.json", {}, "is a file"),
        (tmp_path / "a" / "b" / "absent", {}, "(no|not a) name on the hub"),
        (folder, {"revision": "main"}, "revision has no effect"),
    ):
        with pytest.raises(ConfigError, match=message):
            vitc.from_pretrained(path, **settings)  # type: ignore[arg-type]
    refused(tmp_path, "config.json is missing")
    (folder / "model.safetensors").unlink()
    refused(folder, "model.safetensors is missing")


def test_a_predictor_reports_what_a_saved_model_leaves_unknown(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "preprocessing of the model in .* is not known"),
        ({"preprocessing": PREPARED | {"crop": None}}, "is not known"),
        ({"preprocessing": PREPARED | {"channels": "bgr"}}, "blue, green, red"),
    ]
    for i, (settings, message) in enumerate(cases):
        saved = vitc.save_pretrained(tiny(), tmp_path / str(i), **settings)
        with pytest.raises(ConfigError, match=message):
            Predictor(saved)
    prepared = PREPARED | {"interpolation": "bicubic", "img_size": None}
    saved = vitc.save_pretrained(tiny(), tmp_path / "numbered", preprocessing=prepared)
    predictor = Predictor(saved)
    assert predictor.classes == ("class 0", "class 1", "class 2", "class 3")
    assert [("numbered" in n, "'bicubic'" in n) for n in predictor.notes] == [
        (True, False),
        (False, True),
    ]
    with pytest.raises(ConfigError, match="holds one set"):
        Predictor(saved, weights="raw")
    headless = vitc.save_pretrained(tiny(0), tmp_path / "none", preprocessing=PREPARED)
    with pytest.raises(ConfigError, match="has no head"):
        Predictor(headless)


# -- the hub, without it ---------------------------------------------------------------------------


class Hub:
    """Stands in for huggingface_hub: folders by name, and an error to raise."""

    def __init__(self) -> None:
        self.repos: dict[str, bool] = {}  # name -> private
        self.pushed: dict[str, set[str]] = {}
        self.folders: dict[str, Path] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None

    def snapshot_download(self, repo_id: str, **settings: Any) -> str:
        self.asked.append((repo_id, settings))
        if self.error is not None:
            raise self.error
        return str(self.folders[repo_id])

    def HfApi(self, token: str | None) -> Hub:
        self.asked.append(("HfApi", {"token": token}))
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        self.asked.append((repo_id, settings))
        if self.error is not None:
            raise self.error
        self.repos.setdefault(repo_id, settings["private"])
        return f"https://hub/{repo_id}"

    def model_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.repos[repo_id])

    def upload_folder(self, repo_id: str, folder_path: str, **settings: Any) -> None:
        self.asked.append((repo_id, settings))
        self.pushed[repo_id] = {p.name for p in Path(folder_path).iterdir()}
        vitc.from_pretrained(folder_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in, module = Hub(), ModuleType("huggingface_hub")
    module.__dict__.update(
        {"HfApi": stand_in.HfApi, "snapshot_download": stand_in.snapshot_download}
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return stand_in


def failure(name: str, base: type[Exception] = Exception, status: int | None = None) -> Exception:
    """An error of the hub's library, of a class of that name."""
    response = SimpleNamespace(status_code=status)
    cls: type[Exception] = type(name, (base,), {"response": response})
    return cls("hf_abcdef0123: at https://hub\nTraceback ...")


FILES = {"config.json", "model.safetensors", "README.md"}


def test_a_model_comes_from_the_hub_without_code(hub: Hub, folder: Path) -> None:
    hub.folders["me/mine"] = folder
    model = vitc.from_pretrained("me/mine", revision="v1")
    assert torch.equal(logits(model), logits(tiny()))
    ((name, settings),) = hub.asked
    assert (name, settings["revision"]) == ("me/mine", "v1")
    assert set(settings["allow_patterns"]) == FILES


@pytest.mark.parametrize("name", ["me", "a/b/c", "../up", "/etc/x", "me/", "-a/b", "a/b\n", "a/.."])
def test_an_invalid_name_never_reaches_the_hub(hub: Hub, name: str, tmp_path: Path) -> None:
    for call in (lambda: vitc.from_pretrained(name), lambda: vitc.push_to_hub(tmp_path, name)):
        with pytest.raises(ConfigError, match=r"(no|not a) name on the hub"):
            call()
    assert hub.asked == []


CASES = [
    (failure("LocalTokenNotFoundError", OSError), "not logged in to the hub"),
    (failure("HfHubHTTPError", OSError, 401), "not logged in to the hub"),
    (failure("HfHubHTTPError", OSError, 403), "you may not do this"),
    (failure("RepositoryNotFoundError", OSError, 404), "there is no me/mine"),
    (failure("GatedRepoError", OSError, 403), "agree to terms"),
    (failure("RevisionNotFoundError", OSError, 404), "no revision"),
    (failure("OfflineModeIsEnabled", ConnectionError), "cannot be reached"),
    (failure("LocalEntryNotFoundError", FileNotFoundError), "not in the cache"),
    (failure("ConnectError"), "cannot be reached"),
    (failure("SomethingNew", ValueError, 500), r"SomethingNew: (hf_)?\*\*\*: at https"),
]


@pytest.mark.parametrize(("error", "message"), CASES)
def test_an_error_of_the_hub_is_one_message_without_the_token(
    hub: Hub, folder: Path, error: Exception, message: str
) -> None:
    hub.error = error
    with pytest.raises(CheckpointError, match=message) as down:
        vitc.from_pretrained("me/mine")
    with pytest.raises(VitcError, match=message) as up:
        vitc.push_to_hub(folder, "me/mine", token="hf_abcdef0123")
    for caught in (down, up):
        assert "hf_abcdef" not in str(caught.value)
        assert "Traceback" not in str(caught.value)
        assert caught.value.__suppress_context__
    assert "There is no folder 'me/mine'" in str(down.value)


def test_without_the_extra_the_line_to_install_it_is_given(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: vitc.from_pretrained("me/mine"),
        lambda: vitc.push_to_hub(folder, "me/mine"),
    ):
        with pytest.raises(ConfigError, match=r"huggingface_hub[^$]*pip install"):
            call()
    assert logits(vitc.from_pretrained(folder)).shape == (2, 4)  # a folder needs none of it


def test_a_run_is_pushed_as_a_folder_that_loads(hub: Hub, trained: Path) -> None:
    assert vitc.push_to_hub(trained, "me/mine", token="hf_x") == "https://hub/me/mine"
    assert (hub.pushed, hub.repos) == ({"me/mine": FILES}, {"me/mine": True})
    assert ("HfApi", {"token": "hf_x"}) in hub.asked


def test_a_saved_model_is_pushed_as_it_is_or_not_at_all(hub: Hub, folder: Path) -> None:
    vitc.push_to_hub(folder, "me/mine", message="Again")
    assert hub.asked[-1][1]["commit_message"] == "Again"
    with pytest.raises(ConfigError, match="holds one set"):
        vitc.push_to_hub(folder, "me/mine", weights="raw")
    hub.pushed.clear()
    (folder / "secret").write_text("key")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(folder / "secret")
    with pytest.raises(ConfigError, match=r"README\.md is a link"):
        vitc.push_to_hub(folder, "me/mine")
    (folder / "README.md").unlink()
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="damaged"):
        vitc.push_to_hub(folder, "me/mine")
    assert hub.pushed == {}


@pytest.mark.parametrize("private", [True, False])
def test_what_is_seen_by_others_is_never_changed_in_silence(
    hub: Hub, folder: Path, private: bool
) -> None:
    hub.repos["me/mine"] = not private
    with pytest.raises(ConfigError, match="nothing was pushed"):
        vitc.push_to_hub(folder, "me/mine", private=private)
    assert hub.pushed == {}


# -- the command line ------------------------------------------------------------------------------


def test_the_verbs_save_predict_and_push(
    hub: Hub, trained: Path, tmp_path: Path, photo_folder: Callable[..., Path], capsys: Capture
) -> None:
    saved = tmp_path / "saved"
    assert main(["save", str(trained), str(saved)]) == 0
    said = capsys.readouterr().out
    assert f"vitc predict {saved}" in said
    assert all(name in said for name in FILES)
    photos = photo_folder(classes=1, count=1)
    assert main(["predict", str(saved), str(photos)]) == 0
    assert "pattern" in capsys.readouterr().out
    assert main(["push", str(saved), "me/mine", "--dry-run"]) == 0
    assert "Nothing was pushed" in capsys.readouterr().out
    assert hub.asked == []
    assert main(["push", str(saved), "me/mine", "--public", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == {"status": "done", "url": "https://hub/me/mine", "private": False}


def test_a_dry_run_needs_no_extra(
    trained: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    command = ["push", str(trained), "me/mine", "--dry-run", "--json", "--weights", "raw"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert (set(result["files"]), result["private"]) == (FILES, True)


def test_the_verbs_refuse_in_one_message(
    hub: Hub, trained: Path, folder: Path, capsys: Capture
) -> None:
    hub.error = failure("HfHubHTTPError", OSError, 403)
    for words, code, message in (
        (["save", "runs/absent", "x"], 2, "There is no run folder 'runs/absent'"),
        (["save", str(folder), "x"], 2, "is a saved model, not a run folder"),
        (["save", str(trained), str(folder)], 2, "--overwrite"),
        (["push", str(trained), "mine"], 2, "USER/NAME"),
        (["push", str(trained), "me/mine", "--public", "--private"], 2, "not allowed with"),
        (["push", str(trained), "me/mine"], 1, "you may not do this with me/mine"),
        (["predict", str(folder), str(folder / "config.json"), "--raw"], 2, "holds one set"),
    ):
        assert main(words) == code
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_saved_model_is_shown(folder: Path, capsys: Capture) -> None:
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(w in shown for w in ("The saved model", "classes", "stem", f"vitc predict {folder}"))
