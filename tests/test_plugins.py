"""Custom classes, stems first: named, trusted, kept, built, and refused."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import pickle
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitc import Predictor, complexity, create_model, from_pretrained, load_config, train
from vitc.cli.main import main
from vitc.config import SCHEMA, RunConfig, differences, from_dict, to_dict
from vitc.data.dataset import open_data
from vitc.deploy.save import save_pretrained
from vitc.errors import ConfigError
from vitc.models.config import ViTConfig
from vitc.models.custom import load_stem
from vitc.models.stem_config import CustomStemConfig
from vitc.models.zoo import model_config
from vitc.plugins import consent, load, trust
from vitc.plugins.consent import name_class, with_sources
from vitc.plugins.names import SOURCE, Custom, Kind, parse, sha
from vitc.plugins.names import STEM as A_STEM
from vitc.study.analysis import analyse
from vitc.study.design import hashed_settings
from vitc.study.measures.hparams import hparams_plan
from vitc.study.study_folder import StudyFolder

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_stem.py"
BRIEF: dict[str, Any] = {"train.epochs": 1, "train.batch": 128}

STEM = """
import os
from torch import nn

if "STEM_MARKER" in os.environ:
    open(os.environ["STEM_MARKER"], "a").close()


class Tiny(nn.Module):
    def __init__(self, in_chans, embed_dim, width=8, act="relu"):
        super().__init__()
        self.reduction, self.width, self.act = 8, width, act
        self.conv = nn.Conv2d(in_chans, embed_dim, 8, 8)

    def forward(self, x):
        return self.conv(x)


class Tinier(Tiny):
    pass
"""


@pytest.fixture(autouse=True)
def nothing_imported() -> Iterator[None]:
    """Every test imports its files again, and may repeat a warning."""

    def forget() -> None:
        for name in [n for n in sys.modules if n.startswith("vitc_custom_")]:
            del sys.modules[name]
        load._MODULES.clear()
        consent.warn_once.cache_clear()

    forget()
    yield
    forget()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a stem, which its user wrote."""
    path = tmp_path / "mine" / "my.py"
    path.parent.mkdir()
    path.write_text(STEM)
    return path


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists once the code of a stem has run."""
    path = tmp_path / "the stem's code ran"
    monkeypatch.setenv("STEM_MARKER", str(path))
    return path


@pytest.fixture(scope="module")
def somebodys_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a custom stem, by another user."""
    home = tmp_path_factory.mktemp("somebody")
    (home / "theirs.py").write_text(STEM)
    settings = {**BRIEF, "model.stem": f"{home}/theirs.py:Tiny(width=4)"}
    return train("debug", home / "run", **settings).path


@pytest.fixture
def foreign(somebodys_run: Path, tmp_path: Path) -> Path:
    """The same, as it comes from elsewhere: the original file is not here."""
    run = tmp_path / "foreign"
    shutil.copytree(somebodys_run, run)
    config = json.loads((run / "config.json").read_text())
    config["model"]["stem"]["source"] = "/nowhere/theirs.py:Tiny(width=4)"
    (run / "config.json").write_text(json.dumps(config))
    return run


def named(source: object) -> CustomStemConfig:
    return CustomStemConfig.named(str(source))


both_kinds = pytest.mark.parametrize("kind", [A_STEM, SOURCE], ids=lambda kind: kind.noun)


def built(source: object, in_chans: int = 3, embed_dim: int = 16) -> Any:
    return load_stem(named(source), in_chans, embed_dim)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


# -- naming ----------------------------------------------------------------------------------------


def test_a_named_stem_has_an_absolute_path_and_the_hash_of_its_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, marker: Path
) -> None:
    monkeypatch.chdir(file.parent)
    config = named("./my.py:Tiny(width=3)")
    assert config.source == f"{file}:Tiny(width=3)"
    assert config.sha256 == sha(file.read_bytes())
    assert not marker.exists()


def test_settings_are_literals_and_reach_the_class(file: Path) -> None:
    stem = built(f"{file}:Tiny(width=32, act='a:b(c)')")
    assert (stem.width, stem.act) == (32, "a:b(c)")
    with pytest.raises(ConfigError, match=r"cannot set in_chans itself"):
        named(f"{file}:Tiny(in_chans=1)")
    assert parse(Custom(A_STEM, "a.py:S(k=(1, -2), on=True)"))[2] == {"k": (1, -2), "on": True}


@pytest.mark.parametrize(
    "call",
    [
        "(width=open('x'))",
        "(8)",
        "(**{})",
        "(width=1)(2)",
        "(width=gelu)",
        "(width=1, width=2)",
        "(width=",
        "(width=" + "(" * 500 + ")" * 500 + ")",
        "(width='" + "x" * 3000 + "')",
        "(width=1); (a)",
    ],
)
@both_kinds
def test_other_settings_are_refused_and_never_evaluated(kind: Kind, call: str, file: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"settings .* of the {kind.noun}|names no class of a {kind.noun}",
    ):
        name_class(kind, f"{file}:Tiny{call}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{dir}/mu.py:Tiny", "no file.*Did you mean 'my.py'"),
        ("{dir}/notes.txt:Tiny", "not a Python file"),
        ("{dir}:Tiny", "not a Python file"),
        ("{dir}/my.py:Tini", "no class 'Tini'.*'Tin"),
        ("{dir}/my.py:Tini", "Classes in it: Tinier, Tiny"),
        ("{dir}/my.py", "no class of a (stem|source). Classes in it: Tinier, Tiny"),
        ("{dir}/broken.py:Tiny", "line 2: invalid Python"),
        ("{dir}/zero.py:Tiny", "invalid Python"),
        ("{dir}/large.py:Tiny", "larger than 1 MiB"),
        ("no.such.module:Tiny", "no module 'no.such.module'"),
        ("math:Tiny", "no Python source"),
        ("json.decoder.deeper:Tiny", "no module"),
        ("my:Tiny", "Did you mean 'my.py'"),
        ("notes.txt:Tiny", "not a Python file"),
    ],
)
@both_kinds
def test_what_cannot_be_named_is_one_clear_message(
    kind: Kind, source: str, words: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "notes.txt").write_text("")
    (file.parent / "broken.py").write_text("x = 1\nclass Tiny(:\n")
    (file.parent / "zero.py").write_bytes(b"x\0")
    (file.parent / "large.py").write_text("#" * (1 << 20) + "\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigError) as caught:
        name_class(kind, source.format(dir=file.parent))
    assert re.search(words, str(caught.value), re.DOTALL), str(caught.value)
    assert consent.trusted() == set()


def test_a_module_is_found_without_running_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lab_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("NAME = 'lab'\n")
    (package / "parts.py").write_text(STEM)
    (package / "stems.py").write_text("from .parts import Tiny\nfrom . import NAME\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = named("lab_of_mine.stems:Tiny")
    assert config.sha256 == sha((package / "stems.py").read_bytes())
    assert "lab_of_mine" not in sys.modules
    try:
        assert load_stem(config, 3, 16).reduction == 8
        (package / "stems.py").write_text("from .parts import Tiny  # changed\n")
        with pytest.raises(ConfigError, match="changed since this process imported"):
            built("lab_of_mine.stems:Tiny")
    finally:
        for name in [n for n in sys.modules if n.startswith("lab_of_mine")]:
            del sys.modules[name]


# -- building --------------------------------------------------------------------------------------

HEAD = "from torch import nn\n"
ONE = "class S(nn.Module):\n    def __init__(self, {0}):\n        super().__init__()\n        {1}\n"


@pytest.mark.parametrize(
    ("text", "call", "words"),
    [
        ("import torch\nx = 1 / 0\nclass S: pass", "", r"imported: line 2: ZeroDivisionError"),
        ("raise SystemExit(3)\nclass S: pass", "", "line 1: SystemExit: 3"),
        ("import no_such_thing_at_all\nclass S: pass", "", "ModuleNotFoundError.*no_such_thing"),
        ("class S: pass", "", "not a subclass of torch.nn.Module"),
        ("def S(in_chans, embed_dim): pass", "", "returns no torch.nn.Module"),
        (HEAD + ONE.format("channels, embed_dim", "pass"), "", "does not take in_chans"),
        (HEAD + ONE.format("in_chans", "pass"), "", "does not take embed_dim; it takes in_chans"),
        (HEAD + ONE.format("in_chans, embed_dim", "pass"), "", "reduction None"),
        (HEAD + ONE.format("in_chans, embed_dim", "self.reduction = 8.0"), "", "reduction 8.0"),
        (HEAD + ONE.format("in_chans, embed_dim", "self.reduction = True"), "", "reduction True"),
        (HEAD + ONE.format("in_chans, embed_dim", "self.reduction = 0"), "", "reduction 0"),
        (
            HEAD + ONE.format("in_chans, embed_dim, width=1", "pass"),
            "(widht=2)",
            "no setting 'widht'. Did you mean 'width'",
        ),
        (HEAD + ONE.format("in_chans, embed_dim, width", "pass"), "", "needs width"),
        (
            HEAD + ONE.format("in_chans, embed_dim", "raise ValueError('odd')"),
            "",
            "cannot be built: line 5: ValueError: odd",
        ),
    ],
)
def test_a_stem_that_cannot_be_built_is_one_clear_message(
    text: str, call: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        built(f"{path}:S{call}")
    with pytest.raises(ConfigError, match=words):  # and the second time
        built(f"{path}:S{call}")


def test_a_file_may_import_its_neighbours_and_leaves_no_trace_on_the_path(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("REDUCTION = 4\n")
    (tmp_path / "s.py").write_text(
        HEAD
        + "import neighbour_of_mine\n"
        + ONE.format("in_chans, embed_dim", "self.reduction = neighbour_of_mine.REDUCTION")
    )
    before = list(sys.path)
    assert built(f"{tmp_path}/s.py:S").reduction == 4
    assert sys.path == before
    sys.modules.pop("neighbour_of_mine")


def test_dataclasses_and_pickle_find_the_class(file: Path) -> None:
    file.write_text(STEM + "\nimport dataclasses\n@dataclasses.dataclass\nclass D:\n    x: 'int'\n")
    stem = built(f"{file}:Tiny")
    assert type(pickle.loads(pickle.dumps(stem))) is type(stem)
    assert type(copy.deepcopy(stem)) is type(stem)


def test_importing_draws_nothing_from_the_models_generator(file: Path) -> None:
    file.write_text(STEM + "\nimport torch\nKERNEL = torch.randn(3)\n")
    config = named(f"{file}:Tiny")
    torch.manual_seed(0)
    with torch.device("meta"):  # as `vitc show` builds its first model
        load_stem(config, 3, 16)
    first = torch.rand(2)
    torch.manual_seed(0)
    with torch.device("meta"):
        load_stem(config, 3, 16)
    assert torch.equal(first, torch.rand(2))
    module = sys.modules[f"vitc_custom_{config.sha256}"]
    assert module.KERNEL.device.type == "cpu"


def test_a_changed_file_is_another_stem(file: Path) -> None:
    old = named(f"{file}:Tiny")
    load_stem(old, 3, 16)
    file.write_text(STEM.replace("width=8", "width=9"))
    new = named(f"{file}:Tiny")
    assert new.sha256 != old.sha256
    stem: Any = load_stem(new, 3, 16)
    assert stem.width == 9
    with pytest.raises(ConfigError, match="has changed since"):
        load_stem(old, 3, 16)


# -- in models -------------------------------------------------------------------------------------


class Small(nn.Module):
    """A stem defined in the test."""

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.reduction = 8
        self.conv = nn.Conv2d(in_chans, embed_dim, 8, 8)
        self.norm = nn.BatchNorm2d(embed_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.conv(x))
        return out


def test_create_model_takes_a_class_a_module_or_a_word(file: Path) -> None:
    images = torch.randn(2, 1, 32, 32)
    for stem in (Small, Small(1, 64), f"{file}:Tiny", "patchify"):
        model = create_model("vit_p_tiny", 10, in_chans=1, stem=stem)  # type: ignore[arg-type]
        assert model(images).shape == (2, 10) or stem == "patchify"
    tried: Any = create_model("vit_p_tiny", stem=Small).stem
    assert type(tried) is Small
    assert tried.norm.num_batches_tracked == 0  # running it once moved no statistics
    assert tried.norm.training
    assert type(create_model("vit_p_tiny", stem=f"{file}:Tiny").stem).__name__ == "Tiny"


@pytest.mark.parametrize("stem", [nn.Identity, nn.Linear, nn.Identity(), 5])
def test_create_model_refuses_what_is_no_stem(stem: Any) -> None:
    with pytest.raises(ConfigError, match=r"in_chans|reduction|stem is 5"):
        create_model("vit_p_tiny", stem=stem)


def test_a_class_in_a_config_is_told_to_name_its_file() -> None:
    with pytest.raises(ConfigError, match="needs its file") as caught:
        load_config("debug", **{"model.stem": Small})
    assert "file.py:Small" in (caught.value.hint or "")


def test_the_cost_of_a_custom_stem_is_counted(file: Path) -> None:
    mine = complexity(create_model("vit_p_tiny", stem=f"{file}:Tiny"))
    assert mine == complexity(create_model("vit_p_tiny"))  # the same convolution


def test_a_model_with_a_custom_stem_compiles(file: Path) -> None:
    model = create_model("vit_p_tiny", 10, stem=f"{file}:Tiny").eval()
    nn.init.normal_(model.head.weight)  # type: ignore[arg-type, union-attr]
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


# -- trust -----------------------------------------------------------------------------------------


def test_what_is_named_is_trusted_by_later_processes_and_by_children(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = named(f"{file}:Tiny")
    digest = sha(file.read_bytes())
    assert consent.trusted_file().read_text() == f"{digest}  {file}\n"
    with monkeypatch.context() as later:
        later.setenv("VITC_TRUSTED", "")
        load_stem(config, 3, 16)
    words = consent.consent()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    load_stem(config, 3, 16)  # a child inherits the environment
    monkeypatch.setenv("VITC_TRUSTED", words)  # a worker elsewhere is given it
    load_stem(config, 3, 16)


def test_what_an_earlier_version_trusted_stays_trusted(file: Path) -> None:
    config = CustomStemConfig(source=f"{file}:Tiny", sha256=sha(file.read_bytes()))
    old = consent.trusted_file().with_suffix(".json")
    old.parent.mkdir(parents=True)
    entry = {"source": str(file), "date": "2025-01-01T00:00:00+00:00"}
    old.write_text(json.dumps({config.sha256: entry}, indent=1) + "\n")
    assert load_stem(config, 3, 16).reduction == 8
    assert consent.trusted() == {(config.sha256, str(file))}


def test_a_config_that_nobody_named_runs_nothing(file: Path, marker: Path) -> None:
    for sha256 in (sha(file.read_bytes()), "", "0" * 64):
        config = CustomStemConfig(source=f"{file}:Tiny", sha256=sha256)
        with pytest.raises(ConfigError, match="not trusted on this machine") as caught:
            load_stem(config, 3, 16)
        assert "--trust" in (caught.value.hint or "")
    assert not marker.exists()


@pytest.mark.parametrize("sha256", ["/", "../../../../", "*", "[", "\0", "x" * 9999])
@pytest.mark.parametrize("source", [":a(" * 300_000, "/x\x1b[2K.py:S", "\0:S", "/dev/zero:S", "::"])
def test_odd_text_in_a_foreign_config_is_refused_at_once(
    sha256: str, source: str, foreign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((foreign / "config.json").read_text())
    config["model"]["stem"] = {"kind": "custom", "source": source, "sha256": sha256}
    (foreign / "config.json").write_text(json.dumps(config))
    for words in (["eval"], ["show"], ["train"], ["eval", "--trust"]):
        assert main([words[0], str(foreign), *words[1:]]) == 2
        error = said(capsys)
        assert "\x1b" not in error
        assert len(error) < 2000


@both_kinds
def test_admitted_bytes_elsewhere_are_loaded_without_their_neighbours(
    kind: Kind, tmp_path: Path, marker: Path
) -> None:
    """Else a stranger could put his own helper.py beside a copy of a file you trust."""
    text = "import helper_beside\n" + STEM
    for place, helper in (("mine", "x = 1"), ("theirs", STEM)):
        (tmp_path / place).mkdir()
        (tmp_path / place / "my.py").write_text(text)
        (tmp_path / place / "helper_beside.py").write_text(helper)
    mine = name_class(kind, f"{tmp_path}/mine/my.py:Tiny")
    theirs = Custom(kind, f"{tmp_path}/theirs/my.py:Tiny", mine.sha256)
    with pytest.raises(ConfigError, match="helper_beside") as caught:
        load.load(theirs)
    assert "without the files beside it" in (caught.value.hint or "")
    assert not marker.exists()


def test_compiled_files_beside_an_admitted_one_are_not_read(file: Path, marker: Path) -> None:
    evil = file.with_name("evil.py")
    evil.write_text(STEM)
    harmless = "from torch import nn\n" + ONE.format("in_chans, embed_dim", "self.reduction = 8")
    harmless = harmless.replace("class S", "class Tiny")
    file.write_text(harmless.ljust(len(STEM), "#"))
    os.utime(evil, (1e9, 1e9))
    os.utime(file, (1e9, 1e9))
    py_compile.compile(str(evil), importlib.util.cache_from_source(str(file)))
    built(f"{file}:Tiny")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"{", b"\xff" * 9, b"[" * 100_000, b"0" * 64, b"\0"])
@both_kinds
def test_damaged_lines_trust_nothing_and_stop_nobody(
    kind: Kind, content: bytes, file: Path, marker: Path
) -> None:
    consent.trusted_file().parent.mkdir(parents=True)
    consent.trusted_file().write_bytes(content + b"\n")
    one = Custom(kind, f"{file}:Tiny", sha(file.read_bytes()))
    with pytest.raises(ConfigError, match="not trusted on this machine"):
        load.load(one)
    assert not marker.exists()
    load.load(name_class(kind, one.source))
    assert marker.exists()
    assert consent.trusted_file().read_bytes().startswith(content)


def test_an_unwritable_list_is_a_warning_and_stops_nobody(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "a file"))
    assert built(f"{file}:Tiny").reduction == 8
    assert "this process only" in caplog.text
    monkeypatch.setenv("XDG_STATE_HOME", "state")  # relative, so not the working folder's
    assert consent.trusted_file() == Path.home() / ".local/state/vitc/trusted.txt"


def test_a_hash_on_the_command_line_names_no_file(file: Path, tmp_path: Path, marker: Path) -> None:
    sha256 = sha(file.read_bytes())
    values = to_dict(load_config("debug"))
    values["model"]["stem"] = {"kind": "outside", "source": f"{file}:Tiny", "sha256": ""}
    saved = tmp_path / "theirs.json"
    saved.write_text(json.dumps(values))
    load_config(str(saved), **{"model.stem.sha256": sha256})
    assert consent.trusted() == set()
    assert main(["train", str(saved), "--model.stem.sha256", sha256]) == 2
    assert not marker.exists()
    with pytest.raises(ConfigError, match="is not that of"):
        load_config(
            "debug",
            **{
                "model.stem.source": f"{file}:Tiny",
                "model.stem.kind": "custom",
                "model.stem.sha256": "0" * 64,
            },
        )


def test_a_stem_inside_somebody_elses_config_object_is_not_named_by_passing_it_on(
    foreign: Path, file: Path
) -> None:
    theirs = load_config(str(foreign))
    load_config("debug", model=theirs.model)
    assert consent.trusted() == set()
    by_hand = ViTConfig(stem=CustomStemConfig(source=f"{file}:Tiny"), num_heads=6)
    with pytest.raises(ConfigError, match="not trusted on this machine"):
        train(RunConfig(model=by_hand), file.parent / "run")
    assert not (file.parent / "run").exists()
    config = load_config("debug", model=by_hand)
    assert isinstance(config.model, ViTConfig)
    assert isinstance(config.model.stem, CustomStemConfig)
    assert config.model.stem.sha256 in dict(consent.trusted())


# -- sources of images, beside what both kinds share -----------------------------------------------

IMAGES = """
import os
import numpy as np

if "STEM_MARKER" in os.environ:
    open(os.environ["STEM_MARKER"], "a").close()


class Flat:
    classes = ("dark", "bright")

    def __init__(self, count=64):
        self.labels = {"train": [i % 2 for i in range(count)]}

    def read(self, split, index):
        return np.full((8, 8, 3), 200 * (index % 2), np.uint8)
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A file with a source, which somebody else wrote."""
    path = tmp_path / "theirs" / "flat.py"
    path.parent.mkdir()
    path.write_text(IMAGES)
    return path


def with_images(config: Path, images: Path, sha256: str | None = None) -> Path:
    """Write into a config file that its images come from `images`."""
    values = json.loads(config.read_text()) if config.exists() else {}
    values["data"] = values.get("data", {}) | {
        "source": "custom" if "schema" in values else "outside",
        "path": f"{images}:Flat(count=48)",
        "path_sha256": sha(IMAGES.encode()) if sha256 is None else sha256,
    }
    config.write_text(json.dumps(values))
    return config


@pytest.mark.parametrize("sha256", [None, ""], ids=["saved", "by hand"])
def test_a_source_in_a_foreign_config_needs_trust_once(
    sha256: str | None,
    images: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = with_images(tmp_path / "theirs.json", images, sha256)
    words = ["train", str(config), "--out", str(tmp_path / "run")]
    words += ["--train.epochs", "1", "--train.batch", "8", "--model", "vit_p_tiny"]
    words += ["--model.img_size", "32"]
    assert main(words) == 2
    error = said(capsys)
    assert "names a custom source, Flat(count=48) of" in error
    assert "--trust" in error
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
    assert main([*words, "--trust"]) == 0
    assert f"trusted: {images}:Flat(count=48)" in said(capsys)
    assert marker.exists()
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_a_run_whose_images_are_elsewhere_can_be_trusted_for_its_stem(
    foreign: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_images(foreign / "config.json", tmp_path / "nowhere.py")
    assert [one.kind.noun for one in trust(foreign)] == ["stem"]
    assert "which defines the source Flat(count=48), does not exist" in caplog.text
    alone = with_images(tmp_path / "alone.json", tmp_path / "nowhere.py")
    with pytest.raises(ConfigError, match="does not exist"):
        trust(alone)


def test_trust_admits_the_source_of_a_study(images: Path, tmp_path: Path) -> None:
    plan = hparams_plan(
        ["debug"], ["vit_p_tiny"], ["adamw"], draws=1, **{**BRIEF, "data": f"{images}:Flat"}
    )
    study = StudyFolder(tmp_path / "s")
    study.start(plan, {"versions": {}, "hardware": {}}, "")
    os.environ["VITC_TRUSTED"] = ""  # now it is somebody else's; a fixture puts it back
    consent.trusted_file().unlink()
    assert consent.trusted() == set()
    assert [one.what for one in trust(study.path)] == ["Flat"]
    assert [place for _, place in consent.trusted()] == [str(images)]


def test_other_content_under_the_hash_of_a_source_is_refused(
    images: Path, tmp_path: Path, marker: Path
) -> None:
    config = with_images(tmp_path / "theirs.json", images)
    trust(config)
    images.write_text(IMAGES + "# other\n")
    with pytest.raises(ConfigError, match=r"source Flat.* has changed since it was") as caught:
        open_data(load_config(config).data)
    assert "--data '" in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="has changed since"):
        trust(config)
    assert not marker.exists()


def test_a_file_with_a_stem_and_a_source_is_named_and_imported_once(
    file: Path, tmp_path: Path
) -> None:
    count = tmp_path / "imports"
    file.write_text(f"{STEM}{IMAGES}\nwith open({str(count)!r}, 'a') as f:\n    f.write('x')\n")
    config = load_config("debug", data=f"{file}:Flat", **{"model.stem": f"{file}:Tiny"})
    assert [place for _, place in consent.trusted()] == [str(file)]
    open_data(config.data)
    load_stem(config.model.stem, 3, 16)  # type: ignore[attr-defined]
    assert count.read_text() == "x"


def test_a_source_is_imported_without_torch(images: Path) -> None:
    code = (
        "import sys; from vitc.plugins import load, consent, names\n"
        f"one = consent.name_class(names.SOURCE, '{images}:Flat')\n"
        "found, *_ = load.load(one)\n"
        "assert found.classes == ('dark', 'bright') and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLE.parents[1]
    )
    assert done.returncode == 0, done.stderr


# -- custom models ---------------------------------------------------------------------------------

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes, in_chans=3, width=8, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, width, 8, 8)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.drop(self.conv(x).mean(dim=(2, 3))))


class Wrong(Net):
    def forward(self, x):
        return self.conv(x)
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def test_a_custom_model_is_created_counted_and_described(net: Path) -> None:
    model = create_model(f"{net}:Net(width=16)", 10, img_size=32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    cost = complexity(model)
    assert cost.params == 16 * 3 * 64 + 16 + 16 * 10 + 10
    assert cost.flops == 16 * (3 * 64 + 1) * 16 + (16 + 1) * 10
    assert create_model(f"{net}:Net", 10, img_size=32, in_chans=1)(
        torch.zeros(1, 1, 32, 32)
    ).shape == (1, 10)


def test_a_saved_custom_model_names_no_folder_of_the_machine(net: Path, tmp_path: Path) -> None:
    run = train("debug", tmp_path / "run", **BRIEF, model=f"{net}:Net(width=16)").path
    saved = save_pretrained(run, tmp_path / "saved")
    for name in ("README.md", "config.json"):
        text = (saved / name).read_text()
        assert "net.py:Net(width=16)" in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("Wrong", r"returns \(1, 8, 28, 28\).*must return \(1, 1000\)"),
        ("Net(dropout=0.5)", "active dropout in drop"),
        ("Net(depth=3)", "no setting 'depth'"),
        ("Net(num_classes=3)", "cannot set num_classes itself"),
        ("nn", "not a subclass of torch.nn.Module"),
        ("Nett", "no class 'Nett'. Did you mean 'Net'"),
    ],
)
def test_a_custom_model_that_cannot_work_is_one_clear_message(
    call: str, words: str, net: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        create_model(f"{net}:{call}")


def test_a_custom_model_is_trained_resumed_saved_and_predicts(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = train("debug", run, model=f"{net}:Net(width=4)", **BRIEF)
    assert first.status == "done"
    net.write_text(NET + "# changed\n")  # from now on the copy is used
    assert main(["evaluate", str(run)]) == 0
    assert main(["show", str(run)]) == 0
    assert main(["show", "debug", "--model", f"{net}:Net"]) == 0
    assert main(["save", str(run), str(tmp_path / "saved")]) == 0
    loaded: Any = from_pretrained(tmp_path / "saved")
    assert loaded.conv.out_channels == 4
    images = [np.zeros((32, 32, 3), np.uint8)]
    probs = [Predictor(place)(images).probs for place in (run, tmp_path / "saved")]
    assert np.array_equal(*probs)
    with pytest.raises(ConfigError, match="set_grad_checkpointing"):
        train(
            "debug",
            tmp_path / "other",
            model=f"{net}:Net",
            **BRIEF,
            **{"train.grad_checkpointing": True},
        )
    assert "Traceback" not in capsys.readouterr().err


# -- runs ------------------------------------------------------------------------------------------


def foreign_words(run: Path, out: Path) -> list[list[str]]:
    image = out / "image.png"
    if not image.exists():
        from PIL import Image

        Image.new("RGB", (32, 32)).save(image)
    return [
        ["train", str(run)],
        ["train", str(run), "--out", str(out / "new")],
        ["train", str(run / "config.json"), "--out", str(out / "new")],
        ["eval", str(run)],
        ["predict", str(run), str(image)],
        ["show", str(run)],
        ["show", str(run / "config.json")],
        ["study", "hparams", str(run / "config.json"), "--out", str(out / "study")],
    ]


@pytest.mark.parametrize("file_is_there", [False, True])
def test_a_foreign_run_is_refused_and_nothing_of_it_runs(
    file_is_there: bool,
    foreign: Path,
    somebodys_run: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if file_is_there:
        shutil.copy(somebodys_run / "config.json", foreign / "config.json")
    before = {p: p.read_bytes() for p in foreign.rglob("*") if p.is_file()}
    for words in foreign_words(foreign, tmp_path):
        assert main(words) == 2, words
        error = said(capsys)
        assert "Tiny(width=4)" in error
        assert "theirs.py" in error
        assert "--trust" in error
    assert not marker.exists()
    assert {p: p.read_bytes() for p in foreign.rglob("*") if p.is_file()} == before


def test_a_forged_hash_does_not_open_a_foreign_run(
    foreign: Path, file: Path, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(STEM + "# mine\n")
    mine = named(f"{file}:Tiny")
    config = json.loads((foreign / "config.json").read_text())
    copied = next((foreign / "sources").iterdir())
    config["model"]["stem"] = {
        "kind": "custom",
        "source": f"{copied}:Tiny(width=4)",
        "sha256": mine.sha256,
    }
    (foreign / "config.json").write_text(json.dumps(config))
    copied.rename(copied.with_name(f"{mine.sha256[:12]}_theirs.py"))
    for words in foreign_words(foreign, tmp_path):
        assert main(words) == 2
        assert "SHA-256" in said(capsys)
    assert not marker.exists()


def test_trust_opens_a_foreign_run_and_uses_its_copy(
    foreign: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert main(["eval", str(foreign), "--trust"]) == 0
    assert "trusted: /nowhere/theirs.py:Tiny(width=4)" in said(capsys)
    assert "using the copy" in caplog.text
    assert marker.exists()
    for words in foreign_words(foreign, tmp_path)[4:6]:  # from now on without asking
        assert main(words) == 0
    assert main(["show", "vit_p_tiny", "--trust"]) == 0
    assert "--trust has no effect" in said(capsys)


def test_trust_in_python_admits_what_a_path_names(
    foreign: Path, images: Path, marker: Path
) -> None:
    with_images(foreign / "config.json", images)
    found = trust(foreign)
    named_there = {("stem", "Tiny(width=4)"), ("source", "Flat(count=48)")}
    assert {(one.kind.noun, one.what) for one in found} == named_there
    assert not marker.exists()
    model = with_sources(load_config(str(foreign)).model, foreign)
    assert isinstance(model, ViTConfig)
    assert load_stem(model.stem, 3, 16).reduction == 8  # type: ignore[arg-type]
    assert trust(foreign / "config.json") == found


def test_trust_needs_the_content_that_the_config_means(foreign: Path, tmp_path: Path) -> None:
    next((foreign / "sources").iterdir()).write_text(STEM + "# other\n")
    with pytest.raises(ConfigError, match="no intact copy"):
        trust(foreign)
    assert consent.trusted() == set()
    with pytest.raises(ConfigError, match="not a run or study"):
        trust(tmp_path)
    with pytest.raises(ConfigError, match="no run folder"):
        trust(tmp_path / "nothing")


@pytest.mark.parametrize("form", ["word", "table", "dotted"])
def test_a_config_by_hand_needs_trust_once(
    form: str, file: Path, tmp_path: Path, marker: Path
) -> None:
    source = f"{file}:Tiny"
    forms: dict[str, dict[str, Any]] = {
        "word": {"model": {"stem": source}},
        "table": {"model": {"stem": {"kind": "outside", "source": source}}},
        "dotted": {"model.stem": source},
    }
    saved = tmp_path / "by_hand.json"
    saved.write_text(json.dumps(forms[form]))
    assert main(["show", str(saved)]) == 2
    assert [stem.what for stem in trust(saved)] == ["Tiny"]
    assert main(["show", str(saved)]) == 0
    assert not marker.exists()  # it shows settings; nothing is built


def test_a_run_keeps_a_copy_and_goes_on_with_it_when_the_file_changes(
    file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**BRIEF, "model.stem": f"{file}:Tiny"}
    first = train("debug", tmp_path / "run", **settings)
    (copied,) = (tmp_path / "run" / "sources").iterdir()
    assert copied.read_text() == STEM
    assert copied.name == f"{sha(STEM.encode())[:12]}_my.py"

    for name in ("summary.json", "checkpoints"):  # as if it had been killed at the start
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    file.write_text(STEM.replace("8, 8)", "8, 8, bias=False)"))
    again = train(str(tmp_path / "run"), tmp_path / "run")
    assert "using the copy" in caplog.text
    assert again.top1 == first.top1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["model"]["stem"]["source"] == f"{file}:Tiny"
    assert main(["eval", str(tmp_path / "run")]) == 0

    with pytest.raises(ConfigError, match=r"model\.stem\.sha256"):
        train("debug", tmp_path / "run", **settings)


def test_a_moved_file_is_no_difference(file: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.py"
    shutil.copy(file, moved)
    a, b, c = (
        load_config("debug", **{"model.stem": source})
        for source in (f"{file}:Tiny", f"{moved}:Tiny", f"{moved}:Tinier")
    )
    assert differences(a, b) == []
    own, moved, other = (hashed_settings(to_dict(config), SCHEMA) for config in (a, b, c))
    assert own == moved
    assert differences(a, c)
    assert own != other
    assert from_dict(to_dict(a)) == a


def test_sources_that_lead_out_of_a_run_folder_are_not_written(file: Path, tmp_path: Path) -> None:
    settings = {**BRIEF, "model.stem": f"{file}:Tiny"}
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    train("debug", run, **settings)
    shutil.rmtree(run / "sources")
    (run / "summary.json").unlink()
    elsewhere.mkdir()
    (run / "sources").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="is a link"):
        train("debug", run, **settings)
    assert list(elsewhere.iterdir()) == []


# -- studies, and the example ----------------------------------------------------------------------


def stems_plan(*stems: str, **settings: Any) -> Any:
    return hparams_plan(
        ["debug"], ["vit_p_tiny"], ["adamw"], stems=stems, draws=2, **{**BRIEF, **settings}
    )


def test_stems_multiply_contenders_with_labels_of_their_own(file: Path) -> None:
    plan = stems_plan("conv", "patchify", f"{file}:Tiny", f"{file}:Tiny(width=2)")
    assert plan.contenders == [
        "vit_p_tiny+conv",
        "vit_p_tiny+patchify",
        "vit_p_tiny+Tiny",
        "vit_p_tiny+Tiny(width=2)",
    ]
    conv, patchify = (g.config.model for g in plan.groups[:2])
    assert isinstance(conv, ViTConfig)
    assert conv.stem == model_config("vit_c_tiny").stem  # type: ignore[attr-defined]
    assert patchify == model_config("vit_p_tiny")
    other = file.with_name("other.py")
    other.write_text(STEM + "# other\n")
    same_name = stems_plan(f"{file}:Tiny", f"{other}:Tiny")
    assert same_name.contenders == ["vit_p_tiny+my:Tiny", "vit_p_tiny+other:Tiny"]
    for_all = hparams_plan(
        ["debug"], ["vit_p_tiny"], ["adamw"], draws=1, **{"model.stem": f"{file}:Tiny"}
    )
    assert for_all.contenders == ["vit_p_tiny+Tiny"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--stems", "convv"], "Did you mean 'conv'"),
        (["--stems", "nowhere.py:S"], "no file"),
        (["--stems", "conv", "--model.stem", "patchify"], "no effect with --stems"),
        (["--stems", "conv", "conv"], "twice"),
        (["--stems", "conv", "--models", "resnet_50"], "resnet_50"),
    ],
)
def test_wrong_stems_of_a_study_are_one_message(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert main(["study", "hparams", "debug", "--out", str(out), *words]) == 2
    assert text in said(capsys)
    assert not out.exists()


def test_the_plan_of_a_study_keeps_a_copy_for_the_trials_still_to_come(
    file: Path,
    tmp_path: Path,
    marker: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vitc.training.loop import run

    folder = StudyFolder(tmp_path / "s")
    plan = stems_plan(f"{file}:Tiny", **{"data.max_train": 128})
    environment = {"versions": {}, "hardware": {}}
    folder.start(plan, environment, "")
    assert [p.read_text() for p in (folder.path / "sources").iterdir()] == [STEM]
    trial = next(plan.trials())
    file.write_text("changed while the study runs")
    run(trial.config, folder.trial(trial), quiet=True)
    assert marker.exists()
    assert (folder.trial(trial) / "sources").is_dir()
    (section,) = analyse([folder.path])
    assert (
        section.finding.values["groups"][0]["flops"]
        == complexity(create_model("vit_p_tiny", 10)).flops
    )

    moved = tmp_path / "moved.py"
    moved.write_text(STEM)
    folder.start(stems_plan(f"{moved}:Tiny", **{"data.max_train": 128}), environment, "")
    file.write_text(STEM + "# changed\n")
    with pytest.raises(ConfigError, match="another study"):
        folder.start(stems_plan(f"{file}:Tiny", **{"data.max_train": 128}), environment, "")

    capsys.readouterr()
    monkeypatch.setenv("VITC_TRUSTED", "")  # now it is somebody else's study
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    marker.unlink()
    assert main(["report", str(folder.path)]) == 2
    assert "--trust" in said(capsys)
    assert not marker.exists()
    assert main(["study", "status", str(folder.path)]) == 0
    trust(folder.path)
    analyse([folder.path])


def test_the_example_goes_through_show_and_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{EXAMPLE}:MyStem"
    assert main(["show", "vit_p_tiny", "--model.stem", source, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {p["name"]: p["flops"] for p in shown["parts"]}["stem"] > 0
    words = ["train", "debug", "--model", "vit_p_tiny", "--train.epochs", "1", "--json"]
    words += ["--model.stem", source, "--out", str(tmp_path / "run")]
    assert main(words) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["status"] == "done"
    assert len(EXAMPLE.read_text().splitlines()) <= 40


@pytest.mark.slow
def test_the_example_goes_through_a_study_in_spawned_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They know only the environment of this process."""
    (tmp_path / "no folder").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "no folder"))
    out = tmp_path / "s"
    words = [
        "study",
        "hparams",
        "debug",
        "--models",
        "vit_p_tiny",
        "--draws",
        "2",
        "--workers",
        "1",
        "--json",
    ]
    words += ["--train.epochs", "1", "--train.batch", "128"]
    words += ["--stems", f"{EXAMPLE}:MyStem", "--out", str(out)]
    assert main(words) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["sections"][0]["unfinished_trials"] == 0
    summaries = [json.loads(p.read_text()) for p in out.glob("trials/*/summary.json")]
    assert [s["status"] for s in summaries] == ["done", "done"]
    assert main(["report", str(out), "--trust"]) == 0


def test_the_stem_in_the_documentation_works(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[1] / "docs" / "stems.md").read_text()
    path = tmp_path / "my_stem.py"
    path.write_text(page.partition("```python\n")[2].partition("```")[0])
    model = create_model("vit_p_tiny", 10, stem=f"{path}:MyStem(kernel_size=15)")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# -- tried once before anything depends on it ------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words", "conv"),
    [
        ("raise ValueError('no pixels')", "fails on images.*line 9.*ValueError: no pixels", ""),
        (
            "return self.conv(x)[:, :-1]",
            r"returns \(1, 63, 4, 4\).*must .*\(1, 64, 4, 4\)",
            "",
        ),
        ("return self.conv(x).half()", "torch.float16.*must return", ""),
        ("return x.numpy()", "returns ndarray.*must return", ""),
        ("return None", "returns NoneType", ""),
        ("return self.conv(x)", "without a shape", "nn.LazyConv2d(embed_dim, 8, 8)"),
    ],
)
def test_a_stem_whose_forward_is_wrong_is_refused_when_it_is_built(
    tmp_path: Path, body: str, words: str, conv: str
) -> None:
    conv = conv or "nn.Conv2d(in_chans, embed_dim, 8, 8)"
    file = tmp_path / "wrong.py"
    file.write_text(
        "from torch import nn\n\nclass Wrong(nn.Module):\n"
        "    def __init__(self, in_chans, embed_dim):\n        super().__init__()\n"
        f"        self.reduction = 8\n        self.conv = {conv}\n"
        f"    def forward(self, x):\n        {body}\n"
    )
    with pytest.raises(ConfigError, match=words):
        create_model("vit_p_tiny", 10, stem=f"{file}:Wrong")


def test_a_broken_stem_stops_a_study_before_its_first_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.py"
    file.write_text(
        "from torch import nn\n\nclass NoForward(nn.Module):\n    reduction = 8\n"
        "    def __init__(self, in_chans, embed_dim):\n        super().__init__()\n"
    )
    words = ["study", "hparams", "debug", "--models", "vit_p_tiny", "--draws", "2"]
    words += ["--stems", "patchify", f"{file}:NoForward", "--out", str(tmp_path / "study")]
    assert main(words) == 2
    assert "fails on images" in capsys.readouterr().err
    assert not (tmp_path / "study" / "trials").exists()
