"""What the goldens pin: commands and configs of each case, and how two results are compared.

Shared by `scripts/make_goldens.py`, which records the cases, and by the tests, which repeat them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import signal
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import vitc
from tests.golden_access import ADDED, REMOVED, RENAMED, batches, main

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = GOLDEN / "folders"
TOLERANCE = 1e-6  # of a number that no other machine computes differently

# -- the cases -------------------------------------------------------------------------------------

OPTIMIZERS = ("adamw", "sgd")
FULL_MODELS = ("vit_c_tiny", "vit_p_4gf", "resnet_50", "regnety_1gf")  # their names in full
SMALL = "--model.depth 1 --model.embed_dim 16 --train.threads 1"

BATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "debug": ("debug", {}),
    "debug_served_0": ("debug", {"data.resident": "off", "data.workers": 0}),
    "debug_served_2": ("debug", {"data.resident": "off", "data.workers": 2}),
    "fashion": ("fashion_vit_c", {}),
    "fashion_served_0": ("fashion_vit_p", {"data.resident": "off", "data.workers": 0}),
    "crop": ("debug", {"data.fit": "crop", "data.augment.crop": "random_resized"}),
    "crop_served_2": (
        "debug",
        {
            "data.fit": "crop",
            "data.augment.crop": "random_resized",
            "data.resident": "off",
            "data.workers": 2,
        },
    ),
    "mixup": ("debug", {"data.augment.mixup_alpha": 0.8}),
    "cutmix": ("fashion_vit_c", {"data.augment.cutmix_alpha": 1.0}),
    "mix_each": (
        "debug",
        {
            "data.augment.mixup_alpha": 0.8,
            "data.augment.cutmix_alpha": 1.0,
            "data.augment.mix_per": "sample",
        },
    ),
    "micro": ("debug", {"train.micro_batch": 8, "data.augment.mixup_alpha": 0.8}),
    "erase": ("fashion_vit_c", {"data.augment.erase": 0.5}),
    "light": (
        "debug",
        {"data.augment.lighting": 0.1, "data.augment.jitter": (0.3, 0.3, 0.3)},
    ),
    "repeats": ("debug", {"data.augment.repeats": 3}),
    "balance": ("fashion_vit_c", {"data.balance": "sqrt", "data.max_train": 500}),
    **{
        f"policy_{name}": ("debug", {"data.augment.policy": name})
        for name in ("autoaugment", "v0", "randaugment", "trivial", "three")
    },
}
STEPS = 3  # of each case's batches

TRAINED = {
    f"{kind}_{optim}": f"train debug --model vit_{kind}_tiny --optim {optim} --train.epochs 2 "
    "--train.batch 32 --train.threads 1 --train.device cpu --train.log_every_steps 4"
    for kind in "pc"
    for optim in OPTIMIZERS
}

PAIR = "debug --models vit_p_tiny vit_c_tiny"
STEM = "/tmp/vitc_goldens/my_stem.py:MyStem"
QUICK = "--model.depth 1 --model.embed_dim 16 --train.batch 64 --train.device cpu"
STUDIES = {
    "hparams": f"hparams {PAIR} --optims adamw sgd --draws 2 --control --train.epochs 1",
    "length": f"length {PAIR} --lengths 1 2 --seeds 2",
    "optimizer": f"optimizer {PAIR} --lengths 1 2 --seeds 2",
    "peak": f"peak {PAIR} --tune 2 --tune-epochs 1 --seeds 2 --train.epochs 2",
    "seeds": f"seeds {PAIR} --seeds 3 --train.epochs 1",
    "vary": f"vary {PAIR} --set data.augment.label_smoothing 0.0 0.1 --times optim.lr 1 4 "
    "--seeds 2 --train.epochs 1",
    "half": f"hparams {PAIR} --optims adamw --draws 2 --train.epochs 8",
    "stems": f"hparams debug --models vit_p_tiny --stems patchify {STEM} --draws 1 "
    "--train.epochs 1",
}
"""Each is `vitc study` and these words; the folder's name is the study's."""
KILLED = {
    "killed": f"debug --model vit_p_tiny {SMALL} --train.epochs 6 --data.augment.mixup_alpha 0.2",
    "killed_sgd": f"debug --model vit_c_tiny --optim sgd {SMALL} --train.epochs 5 "
    "--model.stem.channels 4 8 16",
    "killed_stem": f"debug --model vit_p_tiny --model.stem {STEM} {SMALL} --train.epochs 5",
    "killed_pack": f"debug --data /tmp/vitc_goldens/photos.vitc --model vit_p_tiny {SMALL} "
    "--train.epochs 60 --train.batch 4 --data.augment.crop random_resized --data.fit crop",
}
"""Each is `vitc train` and these words; killed after a checkpoint in mid-run."""
SAVE_EVERY = "--train.save_every_steps 40 --train.log_every_steps 10 --train.device cpu"

SITUATIONS = {
    "no command": "",
    "version": "--version",
    "unknown command": "trian",
    "unknown recipe": "train debugg --json",
    "unknown setting": "train debug --optim.lrr 1 --json",
    "unknown optimizer": "train debug --optim adamm --json",
    "value out of range": "train debug --train.epochs 0 --json",
    "value of the wrong type": "train debug --train.epochs two --json",
    "nothing to train": "train",
    "missing weights": "train debug --init {tmp}/nowhere.pt --out {tmp}/x",
    "diverged": f"train debug --optim sgd --optim.lr 1e30 --train.epochs 1 {SMALL} "
    "--model vit_p_tiny --out {tmp}/div --json",
    "finished with another setting": "train {run} --optim.lr 0.5 --json",
    "unknown model": "show vit_c_5gf --json",
    "evaluate nothing": "eval {tmp}/nowhere --json",
    "predict nothing": "predict {run} {tmp}/nowhere.jpg --json",
    "predict a broken image": "predict {run} {tmp}/broken.jpg --json",
    "verify a broken pack": "data verify {tmp}/broken.vitc --json",
    "pack nothing": "data pack {tmp}/nowhere {tmp}/p.vitc --json",
    "unknown study": "study quack",
    "status of nothing": "study status {tmp}/nowhere",
    "report of nothing": "report {tmp}/nowhere --json",
    "unknown study optimizer": "study hparams debug --optims adamx",
    "save over a file": "save {run} {tmp}/broken.jpg --json",
}
"""Commands whose exit codes are pinned; for the {places} see `places`."""

JSON_VERBS = {
    "train": f"train debug --model vit_p_tiny {SMALL} --train.epochs 1 --train.batch 64 "
    "--train.log_every_steps 4 --out {tmp}/fresh --json",
    "train --dry-run": "train debug --dry-run --json",
    "eval": "eval {run} --json",
    "predict": "predict {run} {images}/class_0 --topk 2 --json",
    "show MODEL": "show vit_p_tiny --json",
    "show RECIPE": "show debug --json",
    "show RUN": "show {run} --json",
    "show --list": "show --list --json",
    "convert": "convert {run} {tmp}/out.safetensors --json",
    "save": "save {run} {tmp}/saved --json",
    "data check": "data check {images} --json",
    "data pack": "data pack {images} {tmp}/again.vitc --json",
    "data verify": "data verify {tmp}/again.vitc --json",
    "bench": "bench vit_p_tiny --iterations 2 --warm-up 1 --json",
}
"""Commands whose results on one line have pinned keys."""


# -- running ---------------------------------------------------------------------------------------


def run(*words: str | Path) -> tuple[int, str]:
    """(exit code, stdout) of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue()


def run_json(*words: str | Path) -> Any:
    """What a command that must succeed prints under --json."""
    code, out = run(*words, "--json")
    assert code == 0, (words, out)
    return json.loads(out.splitlines()[-1])


def filled(words: str, **places: Path) -> list[str]:
    """The words of a case with its {places}."""
    return [word.format(**places) for word in words.split()]


def study_words(name: str, out: Path) -> list[str]:
    """The arguments of a study that is run in `out`."""
    return ["study", *f"{STUDIES[name]} {QUICK} --workers 1".split(), "--out", str(out)]


def longer_words(name: str, out: Path) -> list[str]:
    """The same study with three draws in place of two."""
    return ["3" if word == "2" else word for word in study_words(name, out)]


def train_words(name: str, out: Path) -> list[str]:
    """The arguments of one of the runs that are killed."""
    return ["train", *f"{KILLED[name]} {SAVE_EVERY}".split(), "--out", str(out)]


def init_words(weights: Path, out: Path) -> list[str]:
    """The arguments of a run that starts from the weights of another."""
    words = f"train debug --model vit_p_tiny {SMALL} --train.epochs 1 --train.device cpu"
    return [*words.split(), "--init", str(weights), "--out", str(out)]


def stopped(out: Path, number: signal.Signals) -> int:
    """The exit code of a run of this process that gets a signal after its first steps."""

    def watch() -> None:
        metrics = out / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    words = f"train debug --model vit_p_tiny {SMALL} --train.epochs 500 --train.log_every_steps 1"
    code, _ = run(*words.split(), "--out", out)
    watcher.join()
    return code


@contextlib.contextmanager
def figures_undrawn() -> Iterator[None]:
    """A report's numbers without the seconds that drawing its figures takes."""
    from matplotlib.figure import Figure

    def savefig(self: Figure, file: Any, *_: Any, **__: Any) -> None:
        if hasattr(file, "write"):
            file.write("<svg></svg>" if isinstance(file, io.TextIOBase) else b"<svg></svg>")
        else:
            Path(file).write_bytes(b"")

    drawn, Figure.savefig = Figure.savefig, savefig  # type: ignore[method-assign]
    try:
        yield
    finally:
        Figure.savefig = drawn  # type: ignore[method-assign]


def unpack(name: str, where: Path) -> Path:
    """A folder that an earlier version wrote, as a fresh copy in `where`."""
    with tarfile.open(FOLDERS / f"{name}.tar.gz") as tar:
        tar.extractall(where, filter="data")
    return where / name


# -- what is recorded of a result ------------------------------------------------------------------


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tensors_sha(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, shapes, types and bits."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        total.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    return total.hexdigest()


def state_of(run_folder: Path) -> dict[str, Any]:
    """Of the last checkpoint, by file: hash and sum of norms of its tensors."""
    checkpoints = run_folder / "checkpoints"
    step = (checkpoints / "latest").read_text().strip()
    found: dict[str, Any] = {}
    for file in sorted((checkpoints / step).glob("*.safetensors")):
        tensors = load_file(file)
        norm = sum(float(t.double().norm()) for t in tensors.values())
        found[file.name] = {"sha256": tensors_sha(tensors), "norm": norm}
    return found


def metrics(run_folder: Path) -> list[dict[str, Any]]:
    """Its lines, but those of the watch, which came later than the folders."""
    lines = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] != "watch"]


WALL = frozenset(
    ["seconds", "images_per_second", "train_seconds", "peak_memory_bytes", "step_ms", "memory_mib"]
)
"""Numbers that time decides."""


def without(value: Any, names: frozenset[str]) -> Any:
    """A JSON value without the entries of these names."""
    if isinstance(value, dict):
        return {k: without(v, names) for k, v in value.items() if k not in names}
    return [without(v, names) for v in value] if isinstance(value, list) else value


def trials_of(study: Path) -> dict[str, dict[str, Any]]:
    """Every trial of a study's folder, its tuning included: its error and its drawn settings."""
    found = {}
    for file in sorted(study.rglob("summary.json")):
        config = json.loads((file.parent / "config.json").read_text())
        summary = json.loads(file.read_text())
        found[str(file.parent.relative_to(study))] = {
            "model": config["model"]["name"],
            "lr": config["optim"]["lr"],
            "weight_decay": config["optim"]["weight_decay"],
            "seed": config["train"]["seed"],
            "epochs": config["train"]["epochs"],
            "status": summary["status"],
            "top1": summary.get("top1"),
            "step": summary.get("step"),
        }
    return found


def keys(value: Any) -> Any:
    """The names in a JSON value, with the type in place of each single value."""
    if isinstance(value, dict):
        return {k: keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [keys(value[0])] if value else []
    return "null" if value is None else type(value).__name__


def names_and_shapes(model: str) -> list[str]:
    with torch.device("meta"):
        state = vitc.create_model(model).state_dict()
    return [f"{name} {list(tensor.shape)}" for name, tensor in state.items()]


def batch_hashes(name: str) -> list[dict[str, Any]]:
    """Of each micro-batch: hashes of its tensors, and their means for other machines."""
    recipe, settings = BATCHES[name]
    return [
        {
            **{part: tensors_sha({part: tensor})[:16] for part, tensor in batch.items()},
            "mean": float(batch["images"].double().mean()),
            "target": float((batch["targets"].double() ** 2).mean()),
        }
        for batch in batches(recipe, STEPS, settings)
    ]


def machine() -> dict[str, str]:
    """What decides whether two trainings agree to the bit: torch, and what it computes here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(8, 3, 32, 32)
        conv, out = torch.nn.Conv2d(3, 64, 3, 2, 1), torch.nn.Linear(64, 10)
        tokens = F.gelu(conv(x)).flatten(2).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
        loss = F.cross_entropy(out(F.layer_norm(mixed, (64,)).mean(1)), torch.arange(8))
        loss.backward()  # type: ignore[no-untyped-call]
    assert conv.weight.grad is not None
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "computes": tensors_sha({"gradient": conv.weight.grad, "loss": loss.detach()[None]})[:16],
    }


# -- comparing -------------------------------------------------------------------------------------


def differences(old: Any, new: Any, tolerance: float | None = TOLERANCE, at: str = "") -> list[str]:
    """Where keys, numbers, truth values or lengths of two JSON values differ; texts are not read.

    `tolerance` is relative (absolute below 1); None: only keys and lengths are compared.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        old = {RENAMED.get(k, k): v for k, v in old.items() if k not in REMOVED}
        new = {k: v for k, v in new.items() if k in old or k not in ADDED}
        found = [f"{at}.{k} is gone" for k in old.keys() - new.keys()]
        found += [f"{at}.{k} is new" for k in new.keys() - old.keys()]
        for k in old.keys() & new.keys():
            found += differences(old[k], new[k], tolerance, f"{at}.{k}")
        return found
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [f"{at} has {len(new)} entries, not {len(old)}"]
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, tolerance, f"{at}[{i}]")]
    if isinstance(old, str) and isinstance(new, str):
        return []
    if tolerance is None and _number(old) == _number(new):
        return []
    if _number(old) and _number(new):
        if math.isclose(old, new, rel_tol=tolerance or 0, abs_tol=tolerance or 0):
            return []
        return [f"{at} is {new}, not {old}"]
    return [] if type(old) is type(new) and old == new else [f"{at} is {new!r}, not {old!r}"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def config_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """As `differences`, but of settings: texts count too, and no number may be rounded."""
    return [*differences(old, new, 0.0), *text_differences(old, new)]


def text_differences(old: Any, new: Any, at: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = ((k, old[k], new[RENAMED.get(k, k)]) for k in old if RENAMED.get(k, k) in new)
        return [d for k, a, b in pairs for d in text_differences(a, b, f"{at}.{k}")]
    if isinstance(old, list) and isinstance(new, list):
        both = enumerate(zip(old, new, strict=False))
        return [d for i, (a, b) in both for d in text_differences(a, b, f"{at}[{i}]")]
    if isinstance(old, str) and old != new:
        return [f"{at} is {new!r}, not {old!r}"]
    return []


def places(tmp: Path) -> dict[str, Path]:
    """What the {places} of a case stand for, made in `tmp`."""
    (tmp / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    pack = (FOLDERS / "photos.vitc").read_bytes()
    (tmp / "broken.vitc").write_bytes(pack[:200] + bytes(16) + pack[216:])
    return {"run": unpack("done", tmp), "images": unpack("images", tmp), "tmp": tmp}


def recipe_names() -> list[str]:
    recipes = run_json("show", "--list")["recipes"]
    return [r["name"] if isinstance(r, dict) else r for r in recipes]


def type_differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Of two results of `keys`: where the type of a value changed; a null may become anything."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = ((k, old[k], new[RENAMED.get(k, k)]) for k in old if RENAMED.get(k, k) in new)
        return [d for k, a, b in pairs for d in type_differences(a, b, f"{at}.{k}")]
    if isinstance(old, list) and isinstance(new, list) and old and new:
        return type_differences(old[0], new[0], f"{at}[]")
    numbers = {old, new} <= {"int", "float"} if isinstance(old, str) else False
    if old == new or numbers or "null" in (old, new) or [] in (old, new):
        return []
    return [f"{at} is {new}, not {old}"]
