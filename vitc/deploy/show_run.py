"""How is a run going, or how did it go? As tables, values and curves."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitc.config import RunConfig, read_config, to_dict
from vitc.errors import ConfigError
from vitc.files import read_json, writer_of
from vitc.models.stem_config import CustomStemConfig
from vitc.runs.folder import DATA, HEARTBEAT, METRICS, Run
from vitc.runs.legs import changes, read_legs
from vitc.runs.results import SPENT
from vitc.views.model import Chart, Line, Page, Part, Table, Text
from vitc.wording import duration, printable, size

LATEST = 10  # evaluations of a run that are listed
MOST_LINES = 1000  # of metrics.jsonl in a curve


def _filled(value: object) -> bool:
    """Whether a summary has a value there: not None, not an empty list."""
    return value is not None and value != []


def run_page(path: Path) -> Page:
    """The settings, progress and results of a run."""
    config, run = read_config(path), Run(path)
    stem = getattr(config.model, "stem", None)
    classes = read_json(path / DATA).get("classes") if (path / DATA).exists() else None
    few = isinstance(classes, list) and len(classes) <= 5  # top-5 accuracy is always 100 %
    summary, metrics = run.summary, run.metrics()
    evals = [m for m in metrics if m["kind"] == "eval"]
    step = metrics[-1]["step"] if metrics else 0
    status = summary["status"] if summary else _unfinished(path)
    left_out = ["status", "step", "epochs", "run", *(["top5"] if few else [])]
    rows = [
        ("status", f"{status}, at step {summary['step'] if summary else step}"),
        ("model", config.model.name),
        *([("stem", stem.source)] if isinstance(stem, CustomStemConfig) else []),
        ("data", config.data.path or config.data.source),
        ("optimizer", f"{to_dict(config)['optim']['kind']}, lr {config.optim.lr:g}"),
        ("epochs", str(config.train.epochs)),
        *legs_rows(path, config),
        *((k, plain(v)) for k, v in summary.items() if k not in left_out and _filled(v)),
        *([] if summary or not metrics else _progress(path, config, metrics)),
    ]
    parts: list[Part] = [Table(str(path), ("", "value"), rows)]
    if evals:
        measures = ("top1", "top1_raw", *(() if few else ("top5",)), "loss")
        head = ("epoch", "step", *(m.replace("_", " ") for m in measures))
        shown = []
        for line in evals[-LATEST:]:
            known = [(m, line.get(m)) for m in measures]
            cells = ["" if v is None else f"{v:.{3 if m == 'loss' else 2}f}" for m, v in known]
            shown.append((str(line.get("epoch", "")), f"{line['step']:,}", *cells))
        parts.append(Table("Validation", head, shown))
    if status != "done" and not status.startswith("running"):
        parts.append(Text(f"Resume it: vitc train {shlex.quote(str(path))}"))
    values = {
        "run": str(path),
        "status": status,
        "step": step,
        "settings": to_dict(config),
        "summary": summary or None,
        "evals": evals,
    }
    return Page(str(path), parts, values)


def legs_rows(path: Path, config: RunConfig) -> list[tuple[str, str]]:
    """Where a run continued with another learning rate, schedule or length."""
    found = changes(config, read_legs(path, config))
    return [(f"from step {step:,} on", "; ".join(changed)) for step, changed in found]


def _unfinished(path: Path) -> str:
    """Whether a run without a summary is still being written."""
    writer, alive = writer_of(path)
    if alive is None:
        return f"unfinished, last written by {printable(writer)}"
    if alive:
        return f"running, {printable(writer)}"
    return "not running (it was killed, or its machine stopped)"


def _progress(
    path: Path, config: RunConfig, metrics: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """How fast a run is, when it will end, and when it last wrote."""
    rows = []
    written = time.time() - (path / METRICS).stat().st_mtime
    rows.append(("last written", f"{duration(written)} ago"))
    steps = [m for m in metrics if m["kind"] == "train"]
    if steps:
        now = steps[-1]
        rows.append(("lr now", plain(now.get("lr"))))
        rows.append(("images per second", plain(now.get("images_per_second"))))
        used, done = now.get("seconds") or 0.0, (now.get("epoch") or 0.0) / config.train.epochs
        budget = config.train.budget_seconds
        if budget is not None:
            used = max([0.0, *(m["used_seconds"] for m in metrics if m["kind"] == "pace")])
            rows.append(("time left", f"about {duration(budget - used)}, of its budget"))
        elif done > 0:
            left = used * (1 - done) / done
            rows.append(("time left", f"about {duration(left)}, evaluations not counted"))
    if writer_of(path)[1] is not False:  # what a killed run used is no news
        # none so far, gone as the run has just ended, or of a stranger
        with suppress(ConfigError, LookupError, TypeError, ValueError, AttributeError):
            rows += _uses(read_json(path / HEARTBEAT))
    return rows


def _uses(now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The processors, memory and device that a run uses, and what its time was spent on."""
    computing, loading = now["cores_computing"], now["cores_loading"]
    memory = [size(now["memory_bytes"])] if now["memory_bytes"] else []
    if "gpu_memory_total" in now:
        busy = f" {100 * now['gpu_use']:.0f} % busy," if "gpu_use" in now else ""
        used, total = size(now["gpu_memory_bytes"]), size(now["gpu_memory_total"])
        memory.append(f"GPU{busy} {used} of {total}")
    spent = {k: s for k, s in now["time_spent"].items() if k in SPENT}
    whole = sum(spent.values()) or 1.0
    shares = (f"{100 * s / whole:.0f} % {SPENT[k]}" for k, s in spent.items())
    return [
        (
            "processors",
            f"{computing + loading:.1f} of {now['cores']} cores: {computing:.1f} computing, "
            f"{loading:.1f} loading images",
        ),
        *([("memory", "; ".join(memory))] if memory else []),
        ("time so far", ", ".join(shares)),
        ("limit", printable(now["limit"])),
        *([("of matmul rate (MFU)", f"{100 * now['mfu']:.0f} %")] if now["mfu"] else []),
    ]


def curves(title: str, metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Training loss and validation accuracy over the epochs of a run."""

    def line(kind: str, key: str, label: str, look: int) -> Line:
        known = [m for m in metrics if m["kind"] == kind and m.get(key) is not None]
        known = known[:: -(-len(known) // MOST_LINES) or 1]
        points = [m["epoch"] for m in known], [m[key] for m in known]
        return Line(label, look, *points, form="points" if kind == "eval" else "curve")

    accuracy = [line("eval", "top1", "EMA", 0), line("eval", "top1_raw", "raw", 1)]
    if accuracy[0].y == accuracy[1].y:  # there is no average
        accuracy = [replace(accuracy[0], label="")]
    return [
        Chart("loss", title, "epoch", "training loss", [line("train", "loss", "", 0)]),
        Chart("top1", title, "epoch", "validation top-1 (%)", accuracy),
    ]


def plain(value: Any) -> str:
    """A setting or result as a cell of a table."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {plain(v)}" for k, v in value.items() if v not in (None, []))
    number = isinstance(value, float) and math.isfinite(value)
    return f"{value:g}" if number else str(value).replace("\n", " ")
