"""Pictures of what a model looks at: of the right thing, by a command, with clear refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import vitc
from vitc.cli.main import main
from vitc.config import RunConfig
from vitc.deploy import pictures
from vitc.deploy.pictures import Request, picture_page
from vitc.deploy.predict import Predictor
from vitc.errors import ConfigError
from vitc.models.inspect import attention_distance, stem_filters
from vitc.resolve import load_config
from vitc.training.loop import run
from vitc.views.model import Text

CLASSES = (r"a$\frac{$", r"b$\frac{$", "\u732b $x$")  # no formula, and a script the font lacks
Capture = pytest.CaptureFixture[str]


def save_photo(file: Path, channel: int, size: tuple[int, int] = (48, 60)) -> Path:
    pixels = np.random.default_rng(channel).integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[..., channel] += np.uint8(120)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps: one block of attention is like another, so this is enough."""
    root = tmp_path_factory.mktemp("pictures")
    for part, count in (("train", 4), ("val", 2)):
        for channel, label in enumerate(CLASSES):
            folder = root / "photos" / part / label
            folder.mkdir(parents=True)
            for i in range(count):
                save_photo(folder / f"{i}.png", channel, (48, 50 + i))
    config = load_config(
        RunConfig(),
        model="vit_c_tiny",
        data=str(root / "photos"),
        train={"epochs": 1, "batch": 4, "threads": 1},
        **{"model.img_size": 32, "data.workers": 0},
    )
    assert run(config, root / "run", quiet=True).status == "done"
    return root / "run"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return save_photo(tmp_path / r"gr$\frac{$.png", 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and pictures drawn small: what is drawn is what is tested."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pictures, "DPI", 40)
    monkeypatch.setattr(pictures, "MAPS", 2)
    return folder


@pytest.fixture
def undrawn(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the drawing itself, for what is said beside it."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, dpi: None)


def failed(words: list[str], capsys: Capture) -> str:
    """What a command that is refused says; it draws nothing and shows no traceback."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not list(Path.cwd().glob("*.png"))
    return said


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


# -- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "attention",
        pytest.param("positions", marks=pytest.mark.slow),
        pytest.param("filters", marks=pytest.mark.slow),
        "features",
    ],
)
def test_a_run_is_drawn_into_a_file_named_after_what_it_shows(
    kind: str, trained: Path, image: Path, here: Path, capsys: Capture
) -> None:
    operand = [str(image)] if kind in ("attention", "features") else []
    assert main(["show", str(trained), f"--{kind}", *operand]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "vit_c_tiny" in said[0]
    assert "EMA" in said[0]
    assert said[-1] == f"{kind.capitalize()}: {kind}.png"
    pixels = opened(here / f"{kind}.png")
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert (pixels == 255).all(axis=-1).mean() < 0.9


def test_a_picture_is_wide_enough_to_be_read_and_the_same_each_time(
    trained: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    for file in files:
        picture_page(str(trained), {}, Request("positions"), file)
    first, second = map(opened, files)
    assert first.shape[1] >= 1280
    assert np.array_equal(first, second)


def test_the_prediction_is_the_predictors(trained: Path, image: Path, undrawn: None) -> None:
    expected = Predictor(trained, "cpu")(image).topk(1)[0][0]
    for kind in ("attention", "features"):
        values = picture_page(str(trained), {}, Request(kind, image)).values
        assert values["prediction"]["class"] == expected[0]
        assert values["prediction"]["probability"] == pytest.approx(expected[1], abs=1e-6)


def test_the_model_sees_the_image_as_the_predictor_does(
    trained: Path, image: Path, undrawn: None
) -> None:
    predictor = Predictor(trained, "cpu")
    fed: list[torch.Tensor] = []
    hook = predictor.model.register_forward_pre_hook(lambda m, args: fed.append(args[0].clone()))
    predictor(image)
    hook.remove()
    values = picture_page(str(trained), {}, Request("attention", image)).values
    distance = attention_distance(predictor.model, fed[0]).tolist()
    assert np.allclose(values["attention_distance"], distance, atol=1e-5)


def test_title_and_json_name_the_image_and_its_class_verbatim(
    trained: Path, image: Path, undrawn: None, capsys: Capture
) -> None:
    assert main(["show", str(trained), "--attention", str(image), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["of"] == "attention"
    assert values["trained"]
    assert values["picture"] == "attention.png"
    assert values["prediction"]["class"] in CLASSES
    page = picture_page(str(trained), {}, Request("attention", image))
    title = page.parts[0]
    assert isinstance(title, Text)
    assert f"{image.name}: {values['prediction']['class']}, " in title.text


def test_the_file_is_the_one_that_was_named_and_shows_the_heads_of_a_block(
    trained: Path, image: Path, here: Path
) -> None:
    assert main(["show", str(trained), "--filters", "--plot", "pic.pdf"]) == 0
    assert (here / "pic.pdf").stat().st_size > 1000
    assert not (here / "filters.png").exists()
    for name, block in (("few", []), ("more", ["--block", "1"])):
        command = ["show", str(trained), "--attention", str(image), *block]
        assert main([*command, "--plot", f"{name}.png"]) == 0
    assert opened(here / "more.png").shape[0] > 1.5 * opened(here / "few.png").shape[0]


@pytest.mark.parametrize("name", ["vit_p_tiny", "vit_c_tiny"])
def test_a_fresh_model_is_drawn_and_called_untrained(
    name: str, image: Path, undrawn: None, capsys: Capture
) -> None:
    for kind in ("attention", "positions", "filters", "features"):
        operand = [str(image)] if kind in ("attention", "features") else []
        assert main(["show", name, f"--{kind}", *operand]) == 0
        shown = capsys.readouterr().out
        assert f"{name}: fresh weights, not trained" in shown
        assert "%" not in shown  # no prediction


def test_a_fresh_models_picture_is_the_same_each_time_and_leaves_the_generator_alone(
    undrawn: None,
) -> None:
    before = torch.get_rng_state()
    first, second = (picture_page("vit_p_tiny", {}, Request("filters")).values for _ in range(2))
    assert first["components_share"] == second["components_share"]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "mode"), [(1, "RGBA"), (3, "L"), (4, "RGB")])
def test_models_and_images_of_any_channels_are_drawn(
    channels: int, mode: str, image: Path, here: Path
) -> None:
    file = here / "other.png"
    Image.open(image).convert(mode).save(file)
    settings = {"model.in_chans": channels}
    for request in (Request("features", file), Request("filters")):
        picture_page("vit_c_tiny", settings, request, here / f"{request.kind}.png")
        assert opened(here / f"{request.kind}.png").std() > 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"model.img_size": (16, 48)},
        {"model.registers": 2},
        {"model.class_token": False, "model.global_pool": "avg"},
        {"model.depth": 8},
    ],
)
def test_other_shapes_of_vit_are_drawn(
    settings: dict[str, object], image: Path, here: Path
) -> None:
    for request in (Request("attention", image, 0), Request("positions")):
        picture_page("vit_p_tiny", settings, request)
        assert opened(here / f"{request.kind}.png").std() > 5


def test_tiles_keep_their_places_and_a_colour_filter_its_hue() -> None:
    picture, down, right = pictures._mosaic([np.full((4, 4), float(i)) for i in range(5)], 3)
    for i in range(5):
        assert picture[i // 3 * down, i % 3 * right] == i
    assert np.isnan(picture[down - 1]).all()
    assert np.isnan(picture[down, 2 * right])  # no sixth tile
    tile = pictures._filter_tile(np.array([[[2.0, 0.0]], [[0.0, 0.0]], [[-2.0, 0.0]]]))
    assert tile.tolist() == [[[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]]]  # grey where it weighs nothing
    assert np.isfinite(pictures._filter_tile(np.zeros((3, 2, 2)))).all()


def test_filters_and_features_of_a_cnn_are_drawn(image: Path, undrawn: None) -> None:
    page = picture_page("resnet_50", {"model.img_size": 64}, Request("filters"))
    assert page.values["filters"] == stem_filters(vitc.create_model("resnet_50")).shape[0]
    page = picture_page("resnet_50", {"model.img_size": 64}, Request("features", image))
    assert page.values["layers"]


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n torn"])
def test_a_file_that_is_no_image_is_a_mistake_of_the_users(
    content: bytes, here: Path, capsys: Capture
) -> None:
    file = here / "notes.txt"
    file.write_bytes(content)
    said = failed(["show", "vit_p_tiny", "--features", str(file)], capsys)
    assert "--features" in said
    assert "notes.txt" in said


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("RUN --filters --positions", "--positions and --filters: only one picture at a time"),
        ("RUN --filters --block 1", "--block has no effect without --attention"),
        ("--list --filters", "--filters has no effect with --list"),
        ("RUN --filters --model.img_size 64", "Settings have no effect"),
        ("vit_p_tiny --filters --train.epochs 3", "--train.epochs has no effect"),
        ("RUN --filters --plot a.txt", "picture's suffix"),
        ("RUN --attention IMAGE --block=3", "--block 3: the model has blocks 0 to 2"),
        ("RUN --attention IMAGE --block=-1", "--block -1: the model has blocks 0 to 2"),
        ("resnet_50 --attention IMAGE", "not one of vitc's ViTs"),
        ("resnet_50 --positions", "--filters"),
        ("vit_p_tiny --features .", "is a folder"),
        ("vit_p_tiny --attention gone.jpg", "There is no file gone.jpg"),
        ("fashion_vit_c --filters", "a recipe has no weights"),
        ("RUN/config.json --filters", "a config has no weights"),
        ("vit_c_tin --filters", "Did you mean 'vit_c_tiny'"),
        (". --positions", "not a recipe"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    command: str, message: str, trained: Path, image: Path, here: Path, capsys: Capture
) -> None:
    names = {"RUN": str(trained), "IMAGE": str(image)}
    arguments = command.replace("RUN", names["RUN"]).split()
    assert message in failed(["show", *(names.get(a, a) for a in arguments)], capsys)


def test_a_model_without_a_convolution_is_told_what_can_be_shown(here: Path) -> None:
    with pytest.raises(ConfigError, match="--features IMAGE"):
        picture_page("vit_p_tiny", {"model.stem.kind": "dual_patchnorm"}, Request("filters"))


def test_drawing_needs_no_pyplot_and_so_no_window_system(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it fails
    picture_page("vit_p_tiny", {}, Request("positions"))
    assert (here / "positions.png").exists()
