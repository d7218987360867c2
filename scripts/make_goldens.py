"""Record how vitc behaves, in tests/golden/, for test_goldens.py and test_old_folders.py in tests/.

    PYTHONPATH=PATH_OF_THE_VERSION_TO_PIN python scripts/make_goldens.py [PART ...]

Parts: recipes models batches trained folders cli (default: all; `cli` needs `folders`). It takes
about five minutes on one core. The goldens in the repository were written by the version before
the restructuring (commit 54260ad). Writing them again with a later version gives up what they
promise, namely that folders of an earlier version stay readable: do it only to pin something new,
and only that part.

Folders are stored without what no test needs and what names the machine: checkpoints of finished
trials, optimizer states of finished runs, drawn figures, host names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vitc  # of PYTHONPATH, before the repository comes first below

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests import golden_cases as cases  # noqa: E402

PLACE = Path("/tmp/vitc_goldens")  # in configs, where no test looks: the data have moved since
ENDED = ("done", "diverged", "failed")


def write(name: str, value: Any) -> None:
    """One entry a line where it is a table of tables, so that a change is seen in a diff."""
    if isinstance(value, dict):
        lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
    else:
        text = json.dumps(value, indent=1) + "\n"
    file = cases.GOLDEN / f"{name}.json"
    file.write_text(text, encoding="utf-8")
    print(f"{file.relative_to(REPOSITORY)}: {file.stat().st_size:,} bytes", flush=True)


# -- values ----------------------------------------------------------------------------------------


def recipes() -> None:
    found = {}
    for name in cases.run_json("show", "--list")["recipes"]:
        name = name["name"] if isinstance(name, dict) else name
        for optim in cases.OPTIMIZERS:
            code, out = cases.run("show", name, "--optim", optim, "--json")
            if code == 0:  # not every recipe has settings for every optimizer
                found[f"{name} {optim}"] = json.loads(out)["settings"]
    write("recipes", found)


def models() -> None:
    names = {model: cases.names_and_shapes(model) for model in vitc.list_models()}
    hashes = {m: cases.sha("\n".join(lines).encode())[:16] for m, lines in names.items()}
    write("models", {"hashes": hashes, **{m: names[m] for m in cases.FULL_MODELS}})


def batches() -> None:
    write("batches", {name: cases.batch_hashes(name) for name in cases.BATCHES})


def trained() -> None:
    found: dict[str, Any] = {"machine": cases.machine()}
    with tempfile.TemporaryDirectory() as folder:
        for name, words in cases.TRAINED.items():
            out = Path(folder) / name
            cases.run_json(*words.split(), "--out", out)
            found[name] = {
                "state": cases.state_of(out),
                "metrics": cases.without(cases.metrics(out), cases.WALL),
            }
    write("trained", found)


# -- folders ---------------------------------------------------------------------------------------


def folders() -> None:
    shutil.rmtree(cases.FOLDERS, ignore_errors=True)
    shutil.rmtree(PLACE, ignore_errors=True)
    cases.FOLDERS.mkdir()
    PLACE.mkdir()
    os.chdir(PLACE)
    shutil.copy(REPOSITORY / "examples" / "my_stem.py", PLACE)
    images()
    found: dict[str, Any] = {"machine": cases.machine()}
    found["pack"] = {
        name: {"sha256": cases.sha((PLACE / name).read_bytes()), **made}
        for name, made in packs().items()
    }
    store("images", PLACE)
    run_done(found)
    for name in cases.KILLED:
        found[name] = killed(name)
    write("runs", found)
    results: dict[str, Any] = {}
    for name in cases.STUDIES:
        results[name] = study(name)
    write("studies", results)
    shutil.rmtree(PLACE)


def images() -> None:
    """24 photos of three classes, learnable by colour."""
    rng = np.random.default_rng(0)
    for c in range(3):
        folder = PLACE / "images" / f"class_{c}"
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 120, (12, 16, 3), dtype=np.uint8).repeat(3, 0).repeat(3, 1)
            pixels[..., c] += np.uint8(120)
            Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=80)


def packs() -> dict[str, Any]:
    words = ["data", "pack", PLACE / "images"]
    return {
        "photos.vitc": cases.run_json(*words, PLACE / "photos.vitc"),
        "raw.vitc": cases.run_json(*words, PLACE / "raw.vitc", "--raw", "--short-side", "24"),
    }


def run_done(found: dict[str, Any]) -> None:
    words = f"train debug --model vit_p_tiny {cases.SMALL} --train.epochs 3 --train.batch 32"
    cases.run_json(*words.split(), "--train.device", "cpu", "--out", "done")
    run = PLACE / "done"
    cases.run_json("save", run, "saved")
    found["done"] = {
        "state": cases.state_of(run),
        "metrics": cases.metrics(run),
        "predict": predicted(run),
        "predict --raw": predicted(run, "--raw"),
        "eval": cases.run_json("eval", run),
        "eval --split test --raw": cases.run_json("eval", run, "--split", "test", "--raw"),
        "show": cases.run_json("show", run),
        "init": started(run, "done_init"),
    }
    saved = PLACE / "saved"
    found["saved"] = {
        "model_sha256": cases.sha((saved / "model.safetensors").read_bytes()),
        "files": sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()),
        "config": json.loads((saved / "config.json").read_text()),
        "predict": predicted(saved),
        "init": started(saved, "saved_init"),
    }
    store("done", run)
    store("saved", saved)


def predicted(run: Path, *words: str) -> list[Any]:
    code, out = cases.run("predict", run, PLACE / "images", "--json", "--topk", "3", *words)
    assert code == 0, out
    return [json.loads(line) for line in out.splitlines()]


def started(weights: Path, out: str) -> dict[str, Any]:
    """A run from these weights: where it begins and ends."""
    cases.run_json(*cases.init_words(weights, Path(out)))
    return {
        "state": cases.state_of(PLACE / out),
        "metrics": cases.without(cases.metrics(PLACE / out), cases.WALL),
    }


def killed(name: str) -> dict[str, Any]:
    """The end of an uninterrupted run, beside one killed after its second checkpoint."""
    whole, cut = PLACE / "whole" / name, PLACE / name
    command = [sys.executable, "-m", "vitc", *cases.train_words(name, cut)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not (cut / "checkpoints" / "step_80").exists():
        time.sleep(0.002)
        assert process.poll() is None, command
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "summary.json").exists()
    cases.run_json(*cases.train_words(name, whole))
    store(name, cut)
    code, out = cases.run("eval", whole, "--json")
    assert code == 0, out
    return {
        "state": cases.state_of(whole),
        "metrics": cases.without(cases.metrics(whole), cases.WALL),
        "eval": json.loads(out.splitlines()[-1]),
        "predict": predicted(whole),
    }


def study(name: str) -> dict[str, Any]:
    """A study is run, stored and reported; of `half`, one that was interrupted is stored."""
    out = PLACE / name
    if name == "half":
        interrupted(name)
        store(name, out)
        shutil.move(out, PLACE / "interrupted")
    result = cases.run_json(*cases.study_words(name, out))
    found = {"trials": cases.trials_of(out), "results": result}
    plan = json.loads((out / "plan.json").read_text())
    found["hash"] = plan["hash"]
    if name != "half":
        store(name, out)
    if name == "hparams":
        more = cases.run_json(*cases.longer_words(name, out))
        found["extended"] = {"trials": cases.trials_of(out), "results": more}
    print(name, len(found["trials"]), "trials", flush=True)
    return found


def interrupted(name: str) -> None:
    """SIGTERM to a study of four trials in the middle of the third."""
    out = PLACE / name
    command = [sys.executable, "-m", "vitc", *cases.study_words(name, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while True:
        time.sleep(0.002)
        assert process.poll() is None
        trials = list((out / "trials").glob("*/metrics.jsonl")) if out.exists() else []
        if len(trials) == 3 and all(t.read_text().count("eval") >= 2 for t in trials):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    statuses = sorted(t["status"] for t in cases.trials_of(out).values())
    assert statuses == ["done", "done", "interrupted"], statuses


def store(name: str, folder: Path) -> None:
    """As an archive with equal bytes for equal contents, without what no test needs."""
    where = folder.parent / "stored" / name
    shutil.rmtree(where, ignore_errors=True)
    if name == "images":
        shutil.copytree(folder / "images", where)
        shutil.copy(folder / "photos.vitc", where.parent)
    else:
        shutil.copytree(folder, where)
    for junk in [*where.rglob("report"), *where.rglob(".lock")]:
        shutil.rmtree(junk) if junk.is_dir() else junk.unlink()
    for summary in where.rglob("summary.json"):
        if json.loads(summary.read_text())["status"] in ENDED:
            if summary.parent != where:
                shutil.rmtree(summary.parent / "checkpoints")
            else:
                for file in where.rglob("optim.safetensors"):
                    file.unlink()
    for file in where.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".log") and file.is_file():
            file.write_text(neutral(file.read_text()))
    archive = cases.FOLDERS / f"{name}.tar.gz"
    same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=2026-01-01"]
    subprocess.run(
        ["tar", *same, "-I", "gzip -n9", "-cf", archive, "-C", where.parent, name], check=True
    )
    if name == "images":
        shutil.copy(where.parent / "photos.vitc", cases.FOLDERS)
    print(f"{archive.relative_to(REPOSITORY)}: {archive.stat().st_size:,} bytes", flush=True)


def neutral(text: str) -> str:
    """Without this machine's names."""
    text = text.replace(f"on host {socket.gethostname()}", "on host here")
    return re.sub(r'("platform": )"[^"]*"', r'\1"Linux"', text)


# -- the command line ------------------------------------------------------------------------------


def cli() -> None:
    found: dict[str, Any] = {"keys": {}, "codes": {}, "metrics": {}}
    with tempfile.TemporaryDirectory() as folder:
        tmp = Path(folder)
        places = cases.places(tmp)
        for name, words in cases.JSON_VERBS.items():
            code, out = cases.run(*cases.filled(words, **places))
            assert code == 0, (words, out)
            found["keys"][name] = cases.keys(json.loads(out.splitlines()[-1]))
        for name, words in cases.SITUATIONS.items():
            found["codes"][name], _ = cases.run(*cases.filled(words, **places))
        found["codes"]["SIGTERM"] = cases.stopped(tmp / "term", signal.SIGTERM)
        found["codes"]["Ctrl-C"] = cases.stopped(tmp / "int", signal.SIGINT)
        for line in cases.metrics(tmp / "fresh"):
            found["metrics"].setdefault(line["kind"], cases.keys(line))
    write("cli", found)


PARTS = {
    "recipes": recipes,
    "models": models,
    "batches": batches,
    "trained": trained,
    "folders": folders,
    "cli": cli,
}


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        print(f"Unknown: {', '.join(unknown)}. Parts: {', '.join(PARTS)}.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    print(f"vitc of {Path(vitc.__file__).parent}, {cases.machine()}")
    cases.GOLDEN.mkdir(exist_ok=True)
    with cases.figures_undrawn():
        for name in names or PARTS:
            PARTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
