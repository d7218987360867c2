"""Pretrained weights of the catalog: found without running anything, verified, and the network
never waited for."""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import vitc
from vitc.cli.main import main
from vitc.data.preprocessing import Preprocessing
from vitc.errors import CheckpointError, ConfigError
from vitc.machine import install_line
from vitc.models.timm import import_peer
from vitc.weights import catalog, hub
from vitc.weights.catalog import PackagedWeights, TimmWeights
from vitc.weights.load import read_weights

REAL = catalog.CATALOG
NAMES = {  # of the model in the package, by ours
    "stem.conv.conv.weight": "_conv_stem.weight",
    "stages.1.0.expand.norm.running_var": "_blocks.1._bn0.running_var",
    "stages.5.3.depthwise.conv.weight": "_blocks.14._depthwise_conv.weight",
    "conv_head.norm.bias": "_bn1.bias",
    "head.bias": "_fc.bias",
}


def fake_package(folder: Path, tensors: dict[str, torch.Tensor], model: str) -> PackagedWeights:
    """A pip package with a weights file, installed in `folder`, and its entry in the catalog."""
    (folder / "fake_weights-1.0.dist-info").mkdir(parents=True)
    (folder / "fake_weights-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n"
    )
    file = folder / "fake_weights" / "weights.pth"
    file.parent.mkdir()
    (file.parent / "__init__.py").write_text("raise RuntimeError('a package was imported')\n")
    torch.save(tensors, file)
    return PackagedWeights(
        name="fake",
        model=model,
        licence="MIT",
        preprocessing=Preprocessing((0.5,) * 3, (0.25,) * 3, crop=0.875, img_size=(32, 32)),
        package="fake-weights",
        file="fake_weights/weights.pth",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    model = vitc.create_model("vit_r_tiny", num_classes=5)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(0.5)
    tensors = {f"other_name_{i}": t for i, t in enumerate(model.state_dict().values())}
    entry = fake_package(tmp_path / "site", tensors, "vit_r_tiny")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(catalog, "CATALOG", (entry,))
    return entry


def test_weights_of_a_package_come_under_our_names_and_nothing_of_it_is_run(
    fake: PackagedWeights,
) -> None:
    assert fake.here()
    model = vitc.create_model("vit_r_tiny", num_classes=5)
    report = vitc.load_weights(model, "pretrained:fake")
    assert all(bool((p == 0.5).all()) for p in model.parameters())
    assert report.missing == report.unexpected == ()
    assert report.preprocessing == fake.preprocessing
    assert any("MIT" in note for note in report.adapted)
    assert "fake_weights" not in sys.modules
    weights = read_weights("pretrained:fake")
    assert weights.sha256 == fake.sha256
    assert weights.model is not None
    assert weights.model["name"] == "vit_r_tiny"


def test_a_damaged_file_and_another_version_are_refused(
    fake: PackagedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fake.path()
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    with pytest.raises(CheckpointError, match="damaged") as caught:
        read_weights("pretrained:fake")
    assert caught.value.hint is not None
    assert "fake-weights" in caught.value.hint
    path.write_bytes(content)
    monkeypatch.setattr(catalog, "CATALOG", (replace(fake, sha256="0" * 64),))
    with pytest.raises(CheckpointError, match="000000000000"):
        read_weights("pretrained:fake")
    path.unlink()
    assert not fake.here()


def test_a_package_that_is_missing_and_an_unknown_name_are_config_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = replace(REAL[-1], package="no-such-package-anywhere")
    monkeypatch.setattr(catalog, "CATALOG", (absent,))
    assert not absent.here()
    with pytest.raises(ConfigError, match="not installed") as caught:
        read_weights("pretrained:effnet_lite0")
    assert install_line("pretrained") in str(caught.value.hint)
    words = ["train", "fashion_vit_c", "--init", "pretrained:efnet", "--out", str(tmp_path / "r")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "effnet_lite0" in error
    assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


@pytest.fixture
def silent_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that never answers, not even the look-up of a name."""
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    def waits(*_: object, **__: object) -> socket.socket:
        time.sleep(60)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", waits)


def test_without_an_answer_of_the_hub_weights_are_absent_before_it_would_come(
    silent_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", ModuleType("timm"))
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(catalog, "in_cache", lambda *_: False)
    started = time.monotonic()
    assert not TimmWeights("some_model.some_tag", "MIT").here()
    assert time.monotonic() - started < 30
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub.threading, "Thread", None)  # nobody is asked
    assert not hub.reachable()


def test_the_library_of_the_hub_does_not_wait_for_a_hub_that_is_silent(
    silent_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library, constants = ModuleType("huggingface_hub"), SimpleNamespace(HF_HUB_OFFLINE=False)
    library.constants = constants  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", library)
    started = time.monotonic()
    with hub.offline_unless_reachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    assert time.monotonic() - started < 30


class _Answers(BaseHTTPRequestHandler):
    """A mirror of the hub that answers with a status, and a proxy that refuses to lead to it."""

    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/") or 200))
        self.end_headers()

    def do_CONNECT(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None: ...


def test_the_hub_is_reachable_if_it_answers_not_if_there_is_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    try:
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", here)
        assert hub.reachable()
        for status, answers in {401: True, 403: False, 404: True, 405: True, 502: False}.items():
            monkeypatch.setenv("HF_ENDPOINT", f"{here}/{status}")
            assert hub.reachable() == answers
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
        monkeypatch.setenv("https_proxy", here)
        assert not hub.reachable()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_weights_in_the_cache_need_no_network(
    silent_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(catalog, "in_cache", lambda repo, file: repo == "timm/some_model.some_tag")
    assert TimmWeights("some_model.some_tag", "MIT").here()
    monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda name: None)
    assert not TimmWeights("some_model.some_tag", "MIT").here()


def test_timm_weights_are_read_from_its_cache(
    silent_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        timm = import_peer("timm")
        constants = import_peer("huggingface_hub").constants
    except ImportError:
        pytest.skip("timm is not installed (extra `timm`)")
    for where in (constants, import_peer("huggingface_hub.file_download").constants):
        monkeypatch.setattr(where, "HF_HUB_CACHE", str(tmp_path))
    entry = TimmWeights("test_vit.r160_in1k", "Apache-2.0")
    assert not entry.here()
    model = timm.create_model(entry.name, pretrained=False)
    repository = tmp_path / f"models--timm--{entry.name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(model.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    assert entry.here()
    weights = read_weights(entry.where)
    assert weights.preprocessing is not None
    assert weights.preprocessing.img_size == (160, 160)
    assert len(weights.tensors) == len(model.state_dict())


def test_every_entry_names_a_model_a_licence_and_how_to_get_it() -> None:
    for entry in REAL:
        assert entry.licence
        extra = "pretrained" if isinstance(entry, PackagedWeights) else "timm"
        assert install_line(extra) in entry.advice
        if isinstance(entry, PackagedWeights):
            config = vitc.create_model(entry.model).config
            assert entry.preprocessing.img_size == config.size
            assert len(entry.sha256) == 64


@pytest.mark.real_weights
def test_the_real_weights_recognise_what_they_were_trained_on() -> None:
    entry = next(e for e in REAL if isinstance(e, PackagedWeights))
    if not entry.here():
        pytest.skip(f"the pretrained weights are not installed: {entry.advice}")
    weights = read_weights(entry.where)
    names = list(torch.load(entry.path(), weights_only=True))
    ours = dict(zip(weights.tensors, names, strict=True))
    assert {name: ours[name] for name in NAMES} == NAMES
    model = vitc.create_model(entry.model).eval()
    assert vitc.load_weights(model, entry.where).missing == ()
    # Sky above grass: of a uniform image such a network is unsure, of a real one it would not be.
    image = torch.zeros(1, 3, 224, 224)
    image[:, 2, :112], image[:, 1, 112:] = 0.9, 0.6
    with torch.inference_mode():
        logits = model((image - 127 / 255) / (128 / 255))
    assert logits.shape == (1, 1000)
    assert 0.5 < logits.std() < 5
