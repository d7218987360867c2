"""Measure a model on images it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitc.config import RunConfig, read_config
from vitc.data.augment.device import finish
from vitc.data.loader import EvalLoader, open_eval
from vitc.data.preprocessing import Preprocessing
from vitc.errors import DivergedError
from vitc.models.zoo import build_model
from vitc.plugins.consent import with_sources
from vitc.runs.checkpoint import check_fit, load_weights_of
from vitc.runs.folder import Run
from vitc.stats.proportions import wilson
from vitc.training.build import batch_plan
from vitc.training.device import autocast, describe, pick_device
from vitc.training.measured import Asked, Measured, Trained, choose_images
from vitc.training.parallel import Processes
from vitc.training.step import StepSettings
from vitc.wording import counted

EVAL_BATCH = 256  # images; larger ones measure no faster
CPU_PIXELS = 2**21  # of a batch on a CPU: 41 images of 224 pixels, whose activations take 1 GB


def eval_batch(config: RunConfig, device: torch.device) -> int:
    """Images that are evaluated at a time."""
    h, w = config.model.size
    return EVAL_BATCH if device.type != "cpu" else max(1, min(EVAL_BATCH, CPU_PIXELS // (h * w)))


class Counts:
    """Sums of loss, top-1 and top-5 hits over batches; one host read in `result`.

    Samples with label -1 (a skipped file, or padding) do not count.
    """

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(4, dtype=dtype, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """logits (B, K) floating, labels (B,) int64."""
        logits = logits.float()
        seen = labels >= 0
        target = labels.clamp_min(0)
        losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        k = min(5, logits.shape[1])
        best = logits.argmax(dim=1) == target  # of equal logits, which bf16 has, the first
        hits = logits.topk(k, dim=1).indices == target[:, None]  # (B, k)
        self.sums += torch.stack(
            [
                seen.sum(),
                (losses * seen).sum(),
                (best & seen).sum(),
                ((hits.any(1) | best) & seen).sum(),
            ]
        ).to(self.sums.dtype)

    def result(self) -> dict[str, float]:
        """`n`, `loss` (nats), `top1` and `top5` in percent."""
        n, loss, top1, top5 = self.sums.tolist()
        per = 1 / n if n else math.nan
        return {"n": n, "loss": loss * per, "top1": 100 * top1 * per, "top5": 100 * top5 * per}


@torch.inference_mode()
def logits_of(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], s: StepSettings
) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, labels) of every batch, the model in eval mode; batches: uint8 (B, C, H, W), labels.

    The label is -1 for what does not count: a broken file, or padding of the last batch.
    """
    model.eval()
    for images, labels in batches:
        with autocast(s.config.train.precision, s.device):
            last = s.config.train.channels_last
            logits = model(finish(images, None, s.mean, s.std, last))
        yield logits, labels


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], s: StepSettings
) -> dict[str, float]:
    """`n`, `loss`, `top1`, `top5` of the model; batches as in `logits_of`.

    Raises DivergedError: the model's answers are not finite, so that its accuracy means nothing.
    """
    counts = Counts(s.device)
    for logits, labels in logits_of(model, batches, s):
        counts.add(logits, labels)
    s.procs.sum_(counts.sums)
    result = counts.result()
    if result["n"] and not math.isfinite(result["loss"]):
        where = not_finite(model.state_dict()) or "the activations overflow"
        raise DivergedError(
            f"The model's outputs on validation images are not finite: {where}.",
            "Resume from an earlier checkpoint with a lower --optim.lr, or train in fp32.",
        )
    return result


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which of the named tensors holds non-finite numbers, and how many; "": none."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            count = int((~value.isfinite()).sum())
            return f"{count:,} of {counted(value.numel(), 'number')} of {name} are nan or infinite"
    return ""


def load_model(run: Path, weights: str = "ema") -> tuple[nn.Module, dict[str, Any]]:
    """The model of a run folder on CPU in eval mode, with its data.json."""
    config = read_config(run)
    record = Run(run).data
    model = build_model(with_sources(config.model, run), len(record["classes"]))
    values = load_weights_of(run, ema=weights == "ema")
    check_fit(run, values, model.state_dict())
    model.load_state_dict(values)
    return model.eval(), record


def evaluate_run(
    run: Path,
    data: str | None = None,
    split: str | None = None,
    allow_changed_data: bool = False,
) -> dict[str, Any]:
    """Accuracy of a run's last checkpoint on a split of its own data (val), or on other images.

    `split` test is meant to be read once, by the run that was chosen on val. Returns `top1`,
    `top5` (percent), `loss`, `n`, the 95 % interval `top1_low`, `top1_high`, and what was
    measured. Raises ConfigError, DataError, CheckpointError.
    """
    config = read_config(run)
    device = pick_device("auto")
    model, record = load_model(run)
    preprocessing = Preprocessing.from_run(record)
    trained = Trained(config, record["classes"], run, record)
    images = choose_images(trained, Asked(data, split, allow_changed_data))
    batches, settings = open_measured(images, config, preprocessing, device)
    result: dict[str, Any] = evaluate(model.to(device), batches, settings)
    low, high = wilson(result["top1"], int(result["n"]))
    return {
        "run": str(run),
        "split": images.name,
        "classes": len(record["classes"]),
        "weights": "ema",
        **result,
        "n": int(result["n"]),
        "top1_low": low,
        "top1_high": high,
        "trained_on": images.trained_on,
        "notes": list(images.notes),
        "data_fingerprint": images.data.fingerprint,
        "device": describe(device),
    }


def open_measured(
    images: Measured, config: RunConfig, preprocessing: Preprocessing, device: torch.device
) -> tuple[EvalLoader, StepSettings]:
    """Batches of the images to measure on, prepared as for the run of `config`."""
    p, plan = preprocessing, batch_plan(config, Processes())
    settings = StepSettings(config, device, Processes(), p.mean, p.std, len(images.data.classes))
    data = images.data
    batch = eval_batch(config, device)
    return open_eval(images.split, data, config.data, plan, device, batch), settings
