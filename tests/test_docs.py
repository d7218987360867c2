"""Does what README and docs show exist, with its options, and run, page by page, as it is typed?"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image

import vitc
from tests.test_arrays import cifar10
from vitc.cli.main import ALIASES, GROUPS, VERBS
from vitc.cli.parser import take_settings
from vitc.config import all_leaf_types

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# What no test runs, and why. Every entry must match something.
SKIPPED = {
    r"git clone|^(make|docker) |pip install|^python3 -m venv": "installs; CI and `make` do",
    r"engine (ray|slurm)|^srun|nnodes": "needs a cluster; tests/test_launch.py has small ones",
    r"scripts/results.sh|scripts/(ladder|compare_trials|reference_trials).py": "hours of studies",
    r"report studies/quick64": "the run folders of that study are not in the repository",
    r"benchmarks/race(_sets)?.py": "ten minutes, torchvision, and sets of images",
    r"scripts/formula.py|benchmarks/crossing.py|budget_seconds 2700": "an hour",
    r"--scale full --data IMAGENET": "ImageNet on a cluster",
    r"^cp opda/": "a repository of others; the test brings two files of its form",
    r"timm-tests|tests/test_models.py": "needs a clone of timm",
    r"benchmarks/interfaces.py": "minutes of torch.compile",
    r"track (wandb|mlflow)": "needs an extra that is not tested with; tests/test_trackers.py",
}
# What a line needs that may not be installed.
NEEDS = {
    r"\.onnx|onnxruntime": "onnxruntime onnxscript",
    r"photos\.xml": "openvino onnxscript",
    r"vitc serve": "starlette uvicorn",
    r"torchvision:": "torchvision",
    r"muon lion": "lion_pytorch",
    r"track tensorboard": "tensorboard",
}
# How what takes minutes is made to take seconds: shorter budgets, runs and studies.
SHORTER = {
    r"--budget \w+": "--budget 8s",
    r'budget="\w+"': 'budget="8s"',
    r"^(vitc train photos/)(?!.*--budget)": r"\1 --budget 8s",
    r"--train.epochs \d+": "--train.epochs 1",
    r"--int8(?=\s|$)": "--int8 --min-agreement 0",  # hardly trained: close calls
    r"--draws \d+": "--draws 2",
    r"draws=24": 'draws=2, **{"train.epochs": 1, "train.batch": 16}',
    r"^(vitc pretrain formula)": r"\1 --data formula:classes=4,images=32,side=32",
    r"--data photos/": "--data photos/ --train.batch 16",
    r"--tune 8": "--tune 2",
    r"--seeds \d+": "--seeds 2",
    r"--lengths [\d ]+": "--lengths 1 2 ",
    r"^(vitc study paper fig2)$": r"\1 --lengths 1 2 --count 1",
    r"^(vitc study hparams (?!.*--draws).*)": r"\1 --draws 2",
    # Of two tuning draws one must learn, or there is nothing to choose.
    r"^(?!.*epochs)(vitc study (peak|vary) .*--tune \d.*)": (
        r"\1 --train.epochs 2 --data.max_train 2048"
    ),
    r"^(?!.*(epochs|warmup))((.* )?vitc (train fashion|study (quick|hparams|vary|seeds|peak)).*)": (
        r"\2 --train.epochs 1"
    ),
    r"^(?!.*max_train)((.* )?vitc (train fashion|study (?!card|status)).*)": (
        r"\1 --data.max_train 128"
    ),
    r"^(vitc study quick)": r"\1 --draws 2",
    r"^(vitc study length (?!.*--lengths).*)": r"\1 --lengths 1 2 --seeds 2",
    r"^(vitc study card .*)$": r"\1 --dry-run",
}
# What other pages made, and readers of this line do not have.
ANEW = {
    r"^vitc train photos/(?!.*--folds)|vitc\.train\(": "runs/photos",
    r"--out runs/photos_longer": "runs/photos_longer",
    r"vitc\.export\(": "photos.onnx*",  # with its report
    r"vitc train fashion_vit_c": "runs/fashion_vit_c",
    r"vitc study hparams(?!.*--out)|vitc\.study\.run\(": "studies/hparams",
    r"vitc study length(?!.*--out)": "studies/length",
}


def shown(page: Path) -> list[tuple[str, str]]:
    """What a page shows to type: ("sh", a line without its comment) and ("python", a block)."""
    found: list[tuple[str, str]] = []
    text = page.read_text(encoding="utf-8")
    for _, language, block in re.findall(r"^( *)```(\w+)\n(.*?)^\1```", text, re.M | re.S):
        if language == "python":
            code = dedent(block)
            if excerpt := re.match(r"# (vitc/\S+)\.py\n", code):  # runs where that file's names are
                code = f"from {excerpt[1].replace('/', '.')} import *\n{code}"
                code = f"from __future__ import annotations\n{code}"
            found.append(("python", code))
        elif language == "sh":
            lines = re.sub(r"\s+#.*", "", dedent(block).replace("\\\n", " ")).splitlines()
            found += [("sh", line) for line in lines if line.strip()]
    return found


def commands(page: Path) -> list[str]:
    """The lines that call vitc, by itself or under torchrun."""
    lines = [code for kind, code in shown(page) if kind == "sh" and "..." not in code]
    found = [re.search(r"^(?:[A-Z_]+=\S+ )?(?:torchrun .* -m )?(vitc [a-z].*)", x) for x in lines]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_of_the_docs_are_read(page: Path) -> None:
    for command in commands(page):
        _, name, *rest = shlex.split(command)
        name = ALIASES.get(name, name)
        if name in GROUPS:
            verb = GROUPS[name]()[rest[0]]
            name, rest = f"{name} {rest[0]}", rest[1:]
        else:
            verb = VERBS[name]
        if {"--help", "--help-all"} & {*rest}:
            continue
        settings, own = take_settings(rest) if verb.takes_settings else ({}, rest)
        known = all_leaf_types()  # optim.schedule names a kind, whose settings are leaves
        unknown = [k for k in settings if not any(f"{leaf}.".startswith(f"{k}.") for leaf in known)]
        assert not unknown, command
        verb.parser(name).read(own, all_leaf_types() if verb.takes_settings else {}, Namespace())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_to_files_and_those_of_the_site_stay_in_it(page: Path) -> None:
    site = ROOT / "docs"
    inside = site if page.is_relative_to(site) else ROOT
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if ":" not in target:
            file = (page.parent / target).resolve()
            assert file.exists(), target
            assert file.is_relative_to(inside), target


def test_there_are_many_and_what_is_not_run_is_still_there() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 80
    everything = [code for page in PAGES for _, code in shown(page)]
    for pattern in (*SKIPPED, *NEEDS, *SHORTER):
        assert any(re.search(pattern, code) for code in everything), pattern


# -- executed, as typed ----------------------------------------------------------------------------


def run(code: str, desk: Path, kind: str = "sh") -> None:
    """Run one line in a shell, or one block by Python; what it prints is shown if it fails."""
    words = ["bash", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=desk, env=surroundings(desk), capture_output=True, timeout=600)
    assert done.returncode == 0, f"{code}\n{done.stdout.decode()}\n{done.stderr.decode()}"


def surroundings(desk: Path) -> dict[str, str]:
    """The variables of a reader whose home is the desk, and who has activated this Python."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{desk}",
        "HOME": str(desk),
        "XDG_STATE_HOME": str(desk / ".local"),
        "XDG_CACHE_HOME": str(desk / ".cache"),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }


def photos(root: Path, count: int) -> None:
    """Photos of three classes that differ in colour, of odd sizes."""
    rng = np.random.default_rng(0)
    for c, label in enumerate(("cat", "dog", "owl")):
        (root / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (*rng.integers(44, 80, 2), 3), dtype=np.uint8)
            pixels[..., c] += np.uint8(120)
            Image.fromarray(pixels).save(root / label / f"{c}{i:03d}.jpg")


@pytest.fixture(scope="module")
def ran() -> set[str]:
    return set()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the docs take for granted: photos, classes of one's own, a run of them."""
    desk = tmp_path_factory.mktemp("desk")
    photos(desk / "photos/train", 30)
    photos(desk / "photos/test", 8)
    photos(desk / "OTHER", 8)
    for name in ("new", "photo", "1", "2"):
        shutil.copy(desk / "photos/test/cat/0000.jpg", desk / f"{name}.jpg")
    cifar10(desk / "cifar10", "binary")
    (desk / "examples").symlink_to(ROOT / "examples")
    for page in PAGES:
        for kind, code in shown(page):
            if kind == "python" and (named := re.match(r"# (\w+\.py)\n", code)):
                (desk / named[1]).write_text(code)
    cells = json.loads((ROOT / "examples/my_cnn.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    (desk / "my_model.py").write_text("\n\n".join(code[:2]))
    rows = [f"{model},{seed},{30 + seed % 7}" for model in "ab" for seed in range(12)]
    (desk / "sweep.csv").write_text("\n".join(["model,seed,val_error", *rows]))
    for name in ("AlexNet", "ConvNeXt-T"):
        trials = [
            {
                "learning_curve": [{"top_1": 0.4 + i / 100}],
                "nan_train_loss": i > 9,
                "iteration": i,
                "lr": 0.1 * i,
                "momentum": 0.9,
                "weight_decay": 1e-4,
                "epochs": 9,
            }
            for i in range(12)
        ]
        (desk / f"{name}.jsonl").write_text("\n".join(map(json.dumps, trials)))
    torch.save(vitc.create_model("vit_c_4gf", num_classes=7).state_dict(), desk / "vit.pyth")
    run("vitc train photos/ --budget 8s --start scratch", desk)
    run("vitc train runs/photos --train.epochs 1 --out runs/photos_longer", desk)
    run("vitc save runs/photos photos_model", desk)
    return desk


@contextlib.contextmanager
def served(command: str, desk: Path, port: int) -> Iterator[None]:
    """`vitc serve`, until what follows has run."""
    words = [*shlex.split(command), "--port", str(port)]
    server = subprocess.Popen(words, cwd=desk, env=surroundings(desk), stderr=subprocess.PIPE)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            assert server.poll() is None, f"{command}\n{server.stderr and server.stderr.read()!r}"
            time.sleep(0.5)
        yield
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert server.returncode == 143


def skipped(code: str) -> str | None:
    """Why a line or block is not run here."""
    for pattern, reason in SKIPPED.items():
        if re.search(pattern, code, re.MULTILINE):
            return reason
    for pattern, packages in NEEDS.items():
        missing = [name for name in packages.split() if find_spec(name) is None]
        if missing and re.search(pattern, code):
            return f"needs {' and '.join(missing)}"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if shown(p)], ids=lambda p: p.stem)
def test_what_the_docs_show_runs(page: Path, desk: Path, ran: set[str]) -> None:
    """Line by line; a line that has run on another page is not run again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with contextlib.ExitStack() as service:
        for kind, code in shown(page):
            if reason := skipped(code):
                print(f"NOT RUN ({reason}): {code}")
                continue
            for pattern, shorter in SHORTER.items():
                code = re.sub(pattern, shorter, code)
            if code in ran:
                continue
            print(f"$ {code}")
            for pattern, left in ANEW.items():
                if re.search(pattern, code):
                    run(f"rm -rf {left}", desk)
            if code.startswith("vitc serve"):
                service.close()
                service.enter_context(served(code, desk, port))
            else:
                run(code.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), desk, kind)
            ran.add(code)
