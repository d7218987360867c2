"""The loop: what a run writes, how it learns, how it stops, and that a resume is exact."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import vitc
from vitc.config import RunConfig
from vitc.errors import BrokenFileError, ConfigError, DivergedError, InterruptedRun, RunError
from vitc.resolve import load_config
from vitc.runs.folder import Run
from vitc.training import initialise
from vitc.training.loop import run
from vitc.training.step import NormStatistics
from vitc.training.validate import Validation

MIXED = {"data.augment.mixup_alpha": 0.8, "data.augment.cutmix_alpha": 1.0}
WALL = {"seconds", "images_per_second"}  # the fields of a metrics line that time decides


def tiny(**overrides: Any) -> RunConfig:
    base: dict[str, Any] = {
        "train.epochs": 2,
        "train.threads": 1,
        "train.log_every_steps": 1,
    }
    return load_config("debug", **{**base, **overrides})


def lines(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if k not in WALL} for m in Run(path).metrics()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    step = (path / "checkpoints" / "latest").read_text().strip()
    found: dict[str, torch.Tensor] = {}
    for file in sorted((path / "checkpoints" / step).glob("*.safetensors")):
        found |= {f"{file.name}:{k}": v for k, v in load_file(file).items()}
    return found


def assert_same_run(a: Path, b: Path) -> None:
    assert lines(a) == lines(b)
    wa, wb = weights(a), weights(b)
    assert wa.keys() == wb.keys()
    different = [k for k in wa if not torch.equal(wa[k], wb[k])]
    assert not different


def test_debug_run_learns_and_writes_everything(tmp_path: Path) -> None:
    result = run(tiny(**{"train.epochs": 6}), tmp_path / "r", quiet=True)
    assert result.status == "done"
    assert result.top1 is not None
    assert result.top1 > 30  # ten classes: chance is 10
    assert result.summary["failed_to_learn"] is False
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    keys = "status run top1 top1_raw top1_best top5 step total_steps epochs train_seconds"
    for key in (*keys.split(), "images_per_second", "data_fingerprint"):
        assert summary[key] is not None, key
    assert summary["step"] == summary["total_steps"]
    written = "config.json data.json metrics.jsonl summary.json events.log checkpoints"
    assert {p.name for p in (tmp_path / "r").iterdir()} >= set(written.split())
    assert len(Run(tmp_path / "r").metrics("eval")) == 6
    train = Run(tmp_path / "r").metrics("train")
    assert all(math.isfinite(m["loss"]) and m["grad_norm"] > 0 for m in train)
    assert [m["step"] for m in train] == list(range(1, len(train) + 1))
    assert result.top1 >= summary["top1_raw"] - 1  # the average is not worse than the weights


def test_a_run_that_stays_at_chance_says_so_at_its_end(tmp_path: Path) -> None:
    result = run(tiny(**{"optim.lr": 1e-9, "train.epochs": 1}), tmp_path / "r", quiet=True)
    assert result.summary["failed_to_learn"] is True
    steps = result.summary["step"]
    assert steps < 50  # too few to blame the learning rate
    advice = f"Try more time or epochs: it took {steps} steps"
    assert advice in (tmp_path / "r" / "events.log").read_text()


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    brief = {"train.epochs": 1, "data.max_train": 64}
    run(tiny(**brief), tmp_path / "a", quiet=True)
    run(tiny(**brief), tmp_path / "b", quiet=True)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    for name in ("seed", "seed_init", "seed_order", "seed_augment"):
        run(tiny(**brief, **{f"train.{name}": 7}), tmp_path / name, quiet=True)
        assert lines(tmp_path / "a") != lines(tmp_path / name), name


def test_a_finished_run_is_not_run_again_and_another_config_is_refused(tmp_path: Path) -> None:
    brief = {"train.epochs": 1, "data.max_train": 64}
    run(tiny(**brief), tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match="finished"):
        run(tiny(**brief), tmp_path / "a", quiet=True)
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        run(tiny(**brief, **{"optim.lr": 0.5}), tmp_path / "a", quiet=True)
    run(tiny(**brief, **{"optim.lr": 0.002}), tmp_path / "a", quiet=True, overwrite=True)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["optim"]["lr"] == 0.002


@pytest.mark.parametrize(
    ("how", "device"),
    [
        ("SIGTERM", "cpu"),
        pytest.param("SIGUSR1", "cpu", marks=pytest.mark.slow),
        pytest.param("SIGTERM", "cuda", marks=pytest.mark.cuda),
    ],
)
def test_an_interrupted_run_resumes_bit_exactly(tmp_path: Path, how: str, device: str) -> None:
    where = {"train.device": device, "train.deterministic": device == "cuda"}
    config = tiny(**{"train.epochs": 3, "data.max_train": 160}, **where)
    run(config, tmp_path / "whole", quiet=True)
    stop_after(config, tmp_path / "cut", step=5, how=signal.Signals[how])
    summary = tmp_path / "cut" / "summary.json"
    before = json.loads(summary.read_text())
    assert before["status"] == "interrupted"
    begun = time.monotonic()
    run(config, tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    spent = json.loads(summary.read_text())["time_spent"]  # of both
    assert spent["steps"] > before["time_spent"]["steps"] > 0
    assert spent["preparing"] > before["time_spent"]["preparing"] > 0
    both = sum(before["time_spent"].values()) + time.monotonic() - begun
    assert 0.7 * both < sum(spent.values()) < both


def stop_after(
    config: RunConfig, out: Path, step: int, how: signal.Signals = signal.SIGTERM
) -> None:
    """A signal to this very process once the run has logged `step`."""

    def watch() -> None:
        metrics = out / "metrics.jsonl"
        while not metrics.exists() or f'"step": {step}' not in metrics.read_text():
            time.sleep(0.005)
        os.kill(os.getpid(), how)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(InterruptedRun) as caught:
        run(config, out, quiet=True)
    watcher.join()
    assert caught.value.run_exit_code == 128 + how
    assert "vitc train" in str(caught.value.hint)


def test_a_broken_off_evaluation_is_no_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Validation, provider: Any) -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Validation, "measure", measure)
    config = tiny(**{"data.max_train": 64, "train.batch": 32})
    with pytest.raises(InterruptedRun):
        run(config, tmp_path / "r", quiet=True)
    summary = Run(tmp_path / "r").summary
    assert summary["time_spent"]["evaluation"] >= 0.5
    steps = summary["time_spent"]["steps"] + summary["time_spent"]["loading"]
    assert steps <= summary["train_seconds"] + 0.01
    assert summary["train_seconds"] < sum(summary["time_spent"].values()) - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("passes", "precise"),
    [(3, 0), (12, 0), pytest.param(28, 0, marks=pytest.mark.slow), (2, 256), (20, 256)],
    ids=["weights", "average", "last epoch", "norms", "after the norms"],
)
def test_an_evaluation_is_broken_off_at_once_and_made_again_bit_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int, precise: int
) -> None:
    monkeypatch.setattr("vitc.training.validate.eval_batch", lambda *_: 16)
    small = {"train.batch": 32, "data.max_train": 128, "train.precise_bn_images": precise}
    config, seen = tiny(**small), 0
    run(config, tmp_path / "whole", quiet=True)
    until_asked = Validation._until_asked

    def count(self: Validation, batches: Any) -> Any:
        nonlocal seen
        for batch in until_asked(self, batches):
            seen += 1
            if seen == passes:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(Validation, "_until_asked", count)
    with pytest.raises(InterruptedRun):
        run(config, tmp_path / "cut", quiet=True)
    assert seen == passes
    evaluated = Run(tmp_path / "cut").metrics("eval")
    assert len(evaluated) == passes // (16 + precise // 32)
    run(config, tmp_path / "cut", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_diverging_run_stops_and_no_weight_takes_that_step(
    tmp_path: Path, precision: str
) -> None:
    config = tiny(
        **{
            "optim": "sgd",
            "optim.lr": 1e30,
            "train.precision": precision,
            "train.save_every_steps": 1,
        }
    )
    with pytest.raises(DivergedError, match="Diverged at step"):
        run(config, tmp_path / "r", quiet=True)
    assert Run(tmp_path / "r").status == "diverged"
    saved = weights(tmp_path / "r") if (tmp_path / "r/checkpoints/latest").exists() else {}
    assert all(torch.isfinite(v).all() for k, v in saved.items() if k.startswith("model"))


def at_step(
    step: int, act: Callable[[NormStatistics], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call `act` after the BatchNorms of a run's step `step` are done."""
    after, steps = NormStatistics.after_step, iter(range(1, 10_000))

    def then(norms: NormStatistics) -> None:
        after(norms)
        if next(steps) == step:
            act(norms)

    monkeypatch.setattr(NormStatistics, "after_step", then)


@pytest.mark.parametrize("every", [1, None], ids=["at a checkpoint", "at an evaluation"])
def test_running_statistics_that_are_not_finite_end_the_run_and_replace_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int | None
) -> None:
    at_step(3, lambda norms: norms.floats[0].fill_(math.nan), monkeypatch)
    config = tiny(**{"train.save_every_steps": every, "data.max_train": 64})
    with pytest.raises(DivergedError, match=r"stem\.\S*running_mean are nan"):
        run(config, tmp_path / "r", quiet=True)
    assert Run(tmp_path / "r").status == "diverged"
    if every:
        assert (tmp_path / "r/checkpoints/latest").read_text().strip() == "step_2"
        assert all(bool(v.isfinite().all()) for v in weights(tmp_path / "r").values())
    else:
        assert not Run(tmp_path / "r").metrics("eval")


def test_a_run_whose_folder_is_removed_fails_instead_of_making_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    at_step(3, lambda norms: (out / "config.json").unlink(), monkeypatch)
    with pytest.raises(RunError, match="removed or moved"):
        run(tiny(**{"data.max_train": 64}), out, quiet=True)
    assert not (out / "checkpoints" / "latest").exists()


def test_train_is_public_and_takes_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"train.epochs": 1, "train.threads": 1, "train.batch": 64, "data.max_train": 64}
    result = vitc.train("debug", tmp_path / "r", **one)
    assert (result.status, result.path) == ("done", tmp_path / "r")
    assert "1 epoch of 1 step, batch 64" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("before", "noted"),
    [
        ("cpu", ""),
        ("cuda:0", "on cpu, before on cuda:0"),  # of an earlier version
        ("cuda (NVIDIA H200)", "on cpu, before on cuda (NVIDIA H200)"),
    ],
)
def test_a_run_that_is_resumed_on_another_device_notes_that(
    tmp_path: Path, before: str, noted: str
) -> None:
    from tests.test_checkpoint import forge_state

    stop_after(tiny(), tmp_path / "r", step=3)
    for path in (tmp_path / "r" / "checkpoints").glob("step_*"):
        forge_state(path, lambda state: state["extra"].update(device=before))
    run(tiny(), tmp_path / "r", quiet=True)
    events = (tmp_path / "r" / "events.log").read_text()
    assert "resumed at step" in events
    assert ("not bit-exact from here" in events) == bool(noted)
    assert noted in events


@pytest.mark.parametrize(
    ("before", "now", "noted"),
    [
        ("cuda:1", "cuda (A)", False),
        ("cuda (A)", "cuda (A)", False),
        ("cuda (B)", "cuda (A)", True),
        ("mps", "cuda (A)", True),
        ("", "cpu", False),
    ],
)
def test_another_gpu_is_another_device(
    before: str, now: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(initialise, "kind_of", lambda device: now)
    setup = SimpleNamespace(device=torch.device("cuda"))
    log = SimpleNamespace(note=notes.append)
    initialise._note_machine(setup, {"device": before} if before else {}, log)
    assert len(notes) == noted


# A stand-alone process, so that it can be killed for real.
TRAIN = """
import sys, json, torch
torch.set_num_threads(1)
from pathlib import Path
from vitc.config import from_dict
from vitc.training.loop import run
run(from_dict(json.load(open(sys.argv[1]))), Path(sys.argv[2]), quiet=True)
"""


def kill_and_resume(config: RunConfig, tmp_path: Path, kill_at: int) -> Path:
    """Run in a process, `kill -9` it once step `kill_at` is logged, run again to the end."""
    from vitc.config import to_dict

    file, out = tmp_path / "config.json", tmp_path / "killed"
    file.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-c", TRAIN, str(file), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and f'"step": {kill_at}' in metrics.read_text():
            break
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    return out


def assert_resumed(out: Path, killed_at: int, saved_every: int) -> None:
    events = (out / "events.log").read_text()
    resumed = [
        int(line.split("resumed at step ")[1].split()[0])
        for line in events.splitlines()
        if "resumed at step " in line
    ]
    assert len(resumed) == 1
    assert resumed[0] > 0
    assert resumed[0] >= killed_at - 2 * saved_every - 1  # the last one may not be written yet


@pytest.mark.slow  # the JPEG folder dies in the quick suite
def test_kill_9_on_the_resident_path_is_bit_exact(tmp_path: Path) -> None:
    config = tiny(
        **{
            "train.epochs": 4,
            "train.save_every_steps": 3,
            **MIXED,
            "data.augment.label_smoothing": 0.1,
            "train.batch": 64,
            "train.micro_batch": 32,
            "model.drop_path_rate": 0.1,
        }
    )
    run(config, tmp_path / "whole", quiet=True)
    k = random.randint(5, 20)  # of 32 steps
    out = kill_and_resume(config, tmp_path, kill_at=k)
    assert_same_run(tmp_path / "whole", out)
    assert_resumed(out, k, 3)


@pytest.mark.slow
def test_kill_9_on_a_jpeg_folder_with_workers_is_bit_exact(
    tmp_path: Path, photo_folder: Callable[..., Path]
) -> None:
    folder = photo_folder(classes=3, count=60, size=(72, 80))
    config = tiny(
        **{
            "data": str(folder),
            "data.workers": 3,
            "data.resident": "off",
            "data.augment.crop": "random_resized",
            **MIXED,
            "data.augment.label_smoothing": 0.1,
            "train.batch": 16,
            "train.micro_batch": 8,
            "train.epochs": 5,
            "train.save_every_steps": 2,
            "optim.clip_norm": 1.0,
        }
    )
    run(config, tmp_path / "whole", quiet=True)
    k = random.randint(4, 25)  # of some 45 steps, 9 an epoch: nearly always in mid-epoch
    out = kill_and_resume(config, tmp_path, kill_at=k)
    assert_same_run(tmp_path / "whole", out)
    assert_resumed(out, k, 2)
    # with no workers at all, the bits are the same
    alone = load_config(config, **{"data.workers": 0})
    run(alone, tmp_path / "alone", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "alone")


def test_a_broken_file_is_named_and_counted_once_and_stops_the_run_unless_skipped(
    tmp_path: Path, photo_folder: Callable[..., Path]
) -> None:
    folder = photo_folder(classes=2, count=20)
    broken = folder / "class_0" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    config = tiny(
        **{
            "data": str(folder),
            "data.workers": 0,
            "data.resident": "off",
            "data.val_fraction": 0.2,
            "data.test_fraction": 0.0,
            "train.batch": 8,
            "train.epochs": 6,
        }
    )
    with pytest.raises(BrokenFileError, match=r"class_0/007\.jpg"):
        run(config, tmp_path / "stopped", quiet=True)
    skipping = load_config(config, **{"data.bad_files": "skip"})
    result = run(skipping, tmp_path / "skipped", quiet=True)
    events = (tmp_path / "skipped" / "events.log").read_text()
    assert events.count("007.jpg") == 1
    assert result.summary["skipped_files"] == 1 or "not evaluated" in events


@pytest.mark.slow
def test_precision_auto_is_decided_once_saved_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def decide(*_: object) -> tuple[str, str]:
        asked.append(1)
        return "bf16", "measured in a test"

    monkeypatch.setattr("vitc.training.probe.faster_precision", decide)
    config = tiny(**{"train.precision": "auto", "train.batch": 32, "data.max_train": 256})
    stop_after(config, tmp_path / "r", step=3)
    saved = json.loads((tmp_path / "r" / "config.json").read_text())
    assert saved["train"]["precision"] == "bf16"
    run(config, tmp_path / "r", quiet=True)
    assert len(asked) == 1
    assert "precision bf16: measured in a test" in (tmp_path / "r" / "events.log").read_text()
