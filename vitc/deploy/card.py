"""The model card: what a model is, what it was trained on, how well it does, what is not known.

Markdown with the hub's YAML front matter, from the files of a run folder and nothing else. What
they do not tell is said to be unknown. Every name in them may come from a stranger (a class is a
folder's name): it stands in a code span, in which neither Markdown nor HTML means anything, or in
a JSON string, which is also YAML's.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vitc.config import RunConfig, flat_values, read_config, resolve_config, to_dict
from vitc.errors import CheckpointError, VitcError
from vitc.models.config import CNNConfig, ModelConfig, ViTConfig
from vitc.wording import counted

if TYPE_CHECKING:
    from torch import nn

    from vitc.models.complexity import Complexity

SOURCES = {
    "fashion": "Fashion-MNIST, the subset that vitc ships",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "idx": "a data set in IDX files",
    "folder": "a folder of images, one sub-folder a class",
    "synthetic": "synthetic patterns, made by vitc",
}
CLASSES_LISTED = 50
PLACEHOLDER = "DATA"  # for paths of the machine that trained, which are nobody's business

# -- names of strangers ----------------------------------------------------------------------------


def code(value: object, most: int = 120) -> str:
    """Any text as a Markdown code span on one line, in which nothing of it is interpreted."""
    text = _one_line(value, most) or " "
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or text.startswith(" ") or text.endswith(" ") else ""
    return f"{fence}{space}{text}{space}{fence}"


def quoted(value: object) -> str:
    """Any text as a double-quoted string of JSON, which YAML reads alike."""
    return json.dumps(_one_line(value, 120), ensure_ascii=False)


def _one_line(value: object, most: int) -> str:
    text = str(value)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: most + 1])
    return text if len(text) <= most else text[:most] + "..."


# -- the card --------------------------------------------------------------------------------------


def run_card(
    run: Path, weights: str, cost: Complexity | None, numbers: int, why_not: str = ""
) -> str:
    """The card of a run folder's model, as Markdown; `weights` "ema" or "raw", as saved with it.

    `cost`: the model's, or None and `why_not`. `numbers`: how many the weights hold, buffers
    included. Raises CheckpointError: the folder's files are damaged.
    """
    from vitc.runs.folder import read_data, read_summary

    config, record = read_config(run, CheckpointError), read_data(run)
    summary, results = read_summary(run) or {}, results_of(run, weights)
    return _written(
        _front(config.model, record, results),
        _about(config.model, record["classes"], summary),
        _use(config.model, record),
        _data(record),
        _training(config, summary),
        _results(run, config, summary, results, weights, len(record["classes"])),
        _costs(config.model, cost, numbers, why_not, summary),
        _limits(record, results),
    )


def bare_card(
    config: ModelConfig,
    num_classes: int,
    classes: Sequence[str] | None,
    preprocessing: Mapping[str, Any] | None,
    cost: Complexity | None,
    numbers: int,
) -> str:
    """The card of a model that comes from no run folder: what it is, and that the rest is unknown.

    `numbers`: how many the weights hold, buffers included.
    """
    names = list(classes) if classes is not None else None
    unknown = [
        "## Data, training, results",
        "",
        "Not known: this was saved from a model in memory, without the folder of a run. Whoever "
        "publishes it may tell here where its weights come from, on what they were trained, how "
        "well they do on which images, and under which licence they are.",
    ]
    record = {**(preprocessing or {}), "classes": names or [], "in_chans": config.in_chans}
    about = _about(config, names, {}, num_classes)
    return _written(
        _front(config, record, None),
        about,
        _use(config, record if preprocessing is not None else None),
        unknown,
        _costs(config, cost, numbers, "it could not be counted here", {}),
    )


def _written(*sections: Sequence[str]) -> str:
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def results_of(run: Path, weights: str) -> dict[str, Any] | None:
    """What a finished run's last evaluation measured of its EMA or raw weights, on validation.

    Percent, with Wilson's 95 % interval; None: the run has not ended, or had nothing to measure on.
    """
    from vitc.runs.folder import read_metrics, read_summary
    from vitc.stats.proportions import wilson

    summary = read_summary(run) or {}
    evals = [m for m in read_metrics(run, "eval") if m.get("split", "val") == "val"]
    if summary.get("status") != "done" or not evals or evals[-1]["step"] != summary.get("step"):
        return None
    last, suffix = evals[-1], "" if weights == "ema" else "_raw"
    top1, n = _number(last.get(f"top1{suffix}")), _number(last.get("n"))
    if top1 is None or n is None or n < 1 or not 0 <= top1 <= 100:
        return None
    low, high = wilson(top1, int(n))
    return {
        "split": "val",
        "weights": weights,
        "n": int(n),
        "top1": top1,
        "top1_low": low,
        "top1_high": high,
        "top5": _number(last.get(f"top5{suffix}")),
        "loss": _number(last.get(f"loss{suffix}")),
        "step": last["step"],
    }


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]


# -- front matter ----------------------------------------------------------------------------------


def _front(
    config: ModelConfig, record: Mapping[str, Any], results: Mapping[str, Any] | None
) -> list[str]:
    """YAML for the hub. No licence: that is for whoever owns the weights and the images."""
    kind = "vision-transformer" if isinstance(config, ViTConfig) else "cnn"
    kind = kind if isinstance(config, ViTConfig | CNNConfig) else "timm"
    lines = ["---", "library_name: vitc", "pipeline_tag: image-classification", "tags:"]
    lines += [f"- {tag}" for tag in ("image-classification", "vitc", kind)]
    if results is not None:
        lines += [
            "metrics:",
            "- accuracy",
            "model-index:",
            f"- name: {quoted(config.name)}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      type: {quoted(record.get('source', 'unknown'))}",
            f"      name: {quoted(_source(record))}",
            "      split: validation",
            "    metrics:",
            "    - type: accuracy",
            "      name: top-1",
            f"      value: {results['top1'] / 100:.6f}",
        ]
    return [*lines, "---"]


def _source(record: Mapping[str, Any]) -> str:
    source = record.get("source")
    return SOURCES.get(source, str(source)) if isinstance(source, str) else "unknown"


# -- what it is, how to use it ---------------------------------------------------------------------


def _about(
    config: ModelConfig,
    classes: Sequence[str] | None,
    summary: Mapping[str, Any],
    num_classes: int | None = None,
) -> list[str]:
    k = num_classes if classes is None else len(classes)
    size = f"{config.size[0]}x{config.size[1]}"
    what = "gives features, without a head" if k == 0 else f"tells {k:,} classes apart"
    lines = [
        f"# {code(config.name)}",
        "",
        f"An image model that {what}: {code(config.summary)}, on images of {size} pixels with "
        f"{config.in_chans} channels.",
    ]
    if isinstance(config, ViTConfig):
        stem = type(config.stem).__name__.removesuffix("Config")
        lines += [
            "",
            f"A Vision Transformer behind a stem of kind {code(stem)}. Convolutional stems are of "
            "*Early Convolutions Help Transformers See Better* "
            "([arXiv 2106.14881](https://arxiv.org/abs/2106.14881)).",
        ]
    if summary.get("versions"):
        lines += ["", "Trained, saved and described with `vitc`; the numbers below are the run's."]
    return lines


def _use(config: ModelConfig, record: Mapping[str, Any] | None) -> list[str]:
    shape = f"(B, {config.in_chans}, {config.size[0]}, {config.size[1]})"
    lines = [
        "## Use",
        "",
        "With this folder on the disk (or, in Python, its name on the hub):",
        "",
        "```bash",
        "vitc predict FOLDER photo.jpg",
        "```",
        "",
        "```python",
        "import vitc",
        "",
        'predictions = vitc.Predictor("FOLDER")(["photo.jpg"])  # images prepared as in training',
        'model = vitc.from_pretrained("FOLDER")  # evaluation mode; '
        f"{shape} -> (B, classes), logits",
        "```",
        "",
    ]
    if record is None:
        return [*lines, "How images must be prepared for it is not known."]
    mean, std = (", ".join(f"{v:g}" for v in record[k]) for k in ("mean", "std"))
    return [
        *lines,
        f"It takes pixels / 255, minus the mean ({mean}), over the standard deviation ({std}), "
        "channel by channel. Without `vitc`, `model.safetensors` opens with "
        "`safetensors.torch.load_file`.",
    ]


# -- what it was trained on ------------------------------------------------------------------------


def _data(record: Mapping[str, Any]) -> list[str]:
    classes, counts = record["classes"], record.get("counts")
    lines = ["## Data", "", f"- Source: {code(_source(record))}"]
    if isinstance(counts, dict) and all(isinstance(v, int) for v in counts.values()):
        said = ", ".join(f"{code(name, 20)} {n:,}" for name, n in list(counts.items())[:10])
        lines.append(f"- Images: {said}")
    else:
        lines.append("- Images: how many is not known")
    rest = len(classes) - CLASSES_LISTED
    said = ", ".join(code(name, 60) for name in classes[:CLASSES_LISTED])
    more = f" and {rest:,} more (in config.json)" if rest > 0 else ""
    lines.append(f"- {len(classes):,} classes: {said}{more}")
    fingerprint = record.get("fingerprint")
    if isinstance(fingerprint, str):
        lines.append(f"- Fingerprint of images, classes and splits: {code(fingerprint)}")
    fit = {
        "crop": f"middle crop, {record['eval_crop']:g} of what fits",
        "pad": "padded",
        "squash": "squashed",
    }[record["fit"]]
    h, w = record["img_size"]
    lines.append(f"- Prepared for evaluation: to {h}x{w} pixels, {fit}")
    notes = record.get("notes")
    if isinstance(notes, list):
        lines += [f"- Noted: {code(note, 300)}" for note in notes[:10]]
    return lines


# -- how it was trained ----------------------------------------------------------------------------


def _training(config: RunConfig, summary: Mapping[str, Any]) -> list[str]:
    t, optim = config.train, config.optim
    kind = to_dict(config)["optim"]["kind"]
    lines = [
        "## Training",
        "",
        f"- Recipe: {code(config.name)}",
        f"- Optimizer: {code(kind)}, peak learning rate {optim.peak_lr(t.batch):g}, weight decay "
        f"{optim.weight_decay:g}",
        f"- {counted(t.epochs, 'epoch')} in batches of {t.batch:,}, precision {t.precision}",
    ]
    if _number(summary.get("step")) is not None:
        total = _number(summary.get("total_steps"))
        of = f" of {total:,.0f}" if total is not None else ""
        lines.append(f"- Steps taken: {summary['step']:,}{of}")
    if optim.ema.kind == "none":
        lines.append("- No average of the weights (EMA) was kept")
    weights = config.init.weights
    start = code(_bare(weights)) if weights else "freshly drawn weights"
    lines += [f"- Started from: {start}", ""]
    command = training_command(config)
    if command is None:
        lines.append("To train it again, put the settings below into a file SETTINGS.json:")
        command = "vitc train SETTINGS.json"
    else:
        lines.append("To train it again:")
    lines += ["", "```bash", command, "```", ""]
    if config.data.path is not None:
        lines += [f"`{PLACEHOLDER}` stands for the folder of the images.", ""]
    settings = json.dumps(_public(to_dict(config)), indent=2)  # ASCII; no line can end the block
    lines += ["<details><summary>All settings</summary>", "", "```json", settings, "```", ""]
    return [*lines, "</details>"]


def _bare(path: str) -> str:
    return path if path.startswith("timm:") else PurePath(path).name


def _public(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the folders of the machine that trained."""
    data, init, stem = settings["data"], settings["init"], settings["model"].get("stem", {})
    if data["path"] is not None:
        data["path"] = PLACEHOLDER
    if init["weights"]:
        init["weights"] = _bare(init["weights"])
    if "source" in stem:
        stem["source"] = _bare(stem["source"])
    return settings


def training_command(config: RunConfig) -> str | None:
    """`vitc train RECIPE --SETTING VALUE ...` that gives this config again; the folder of its
    images is DATA. None: it has no recipe's name, or cannot be told so."""
    from vitc.recipes import RECIPES, get_recipe

    if config.name not in RECIPES:
        return None
    kind = to_dict(config)["optim"]["kind"]
    chosen: dict[str, Any] = {}
    try:
        if to_dict(get_recipe(config.name))["optim"]["kind"] != kind:
            chosen["optim"] = kind
        base = resolve_config(config.name, **chosen)
        if base.model.name != config.model.name:
            chosen["model"] = config.model.name
            base = resolve_config(config.name, **chosen)
        there, here = (flat_values(to_dict(c)) for c in (base, config))
        changed = {k: v for k, v in here.items() if there.get(k, ...) != v and k != "data.path"}
        again = resolve_config(config.name, **chosen, **changed)
    except VitcError:
        return None
    whole, ours = flat_values(to_dict(again)), flat_values(to_dict(config))
    if {**whole, "data.path": None} != {**ours, "data.path": None}:
        return None
    words = [w for k, v in {**chosen, **changed}.items() for w in (f"--{k}", *_words(v))]
    if config.data.path is not None:
        words += ["--data.path", PLACEHOLDER]
    if any(not word.isprintable() for word in words):
        return None
    return shlex.join(["vitc", "train", config.name, *words])


def _words(value: Any) -> list[str]:
    """A setting's value as the words of a command line."""
    if isinstance(value, list):
        if all(isinstance(v, str) for v in value):
            return [",".join(value) or "none"]
        return [str(v) for v in value]
    if value is None:
        return ["none"]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


# -- how well it does, and at what cost ------------------------------------------------------------


def _results(
    run: Path,
    config: RunConfig,
    summary: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    weights: str,
    classes: int,
) -> list[str]:
    from vitc.runs.folder import read_metrics

    lines = ["## Results", ""]
    if results is None:
        status = summary.get("status", "unfinished")
        if status == "done":
            return [*lines, "None were measured: the run had no validation images."]
        return [
            *lines,
            f"The run has not come to its end (status {code(status, 20)}); of these weights "
            "nothing was measured.",
        ]
    averaged = weights == "ema" and config.optim.ema.kind != "none"
    lines += [
        f"On {counted(results['n'], 'validation image')}, with the "
        f"{'average (EMA) of the weights' if averaged else 'last weights, not averaged'}, "
        "after the last epoch:",
        "",
        "| measure | value | 95 % interval |",
        "|---|---|---|",
        f"| top-1 | {results['top1']:.2f} % | {results['top1_low']:.2f} to "
        f"{results['top1_high']:.2f} % |",
    ]
    if results["top5"] is not None and classes > 5:  # else it is 100 % always
        lines.append(f"| top-5 | {results['top5']:.2f} % | |")
    if results["loss"] is not None:
        lines.append(f"| cross-entropy | {results['loss']:.4f} | |")
    tests = [m for m in read_metrics(run, "eval") if m.get("split") == "test"]
    top1, n = (_number(tests[-1].get(k)) if tests else None for k in ("top1", "n"))
    lines += [
        "",
        "The interval is Wilson's: chance in the choice of those images, not in training.",
    ]
    if top1 is None or n is None:
        lines.append("The run's files hold no measurement on test images.")
    else:
        lines.append(f"On {n:,.0f} test images: top-1 {top1:.2f} %.")
    return lines


def cost_of(model: nn.Module, config: ModelConfig) -> Complexity | None:
    """The model's cost; None where it cannot be counted."""
    from vitc.models.complexity import complexity

    try:
        return complexity(model, config.size, config.in_chans)
    except VitcError:
        return None


def _costs(
    config: ModelConfig,
    cost: Complexity | None,
    numbers: int,
    why_not: str,
    summary: Mapping[str, Any],
) -> list[str]:
    lines = ["## Cost", ""]
    if cost is None:
        lines.append(f"- Numbers in the weights: {numbers:,}")
        lines.append(f"- Flops: not counted ({code(why_not or 'it cannot run without data', 300)})")
    else:
        lines.append(f"- Parameters: {cost.params:,}")
        lines.append(
            f"- One {config.size[0]}x{config.size[1]} image: {cost.flops:,} flops "
            f"(multiply-adds), {cost.activations:,} activations"
        )
    seconds, speed = (_number(summary.get(k)) for k in ("train_seconds", "images_per_second"))
    if seconds is not None and speed is not None:
        lines.append(f"- Training took {seconds:,.0f} s, at {speed:,.1f} images/s")
    elif summary:
        lines.append("- How long training took is not known")
    if summary:
        device, hardware = summary.get("device"), summary.get("hardware")
        cpu = hardware.get("cpu") if isinstance(hardware, dict) else None
        known = [code(v) for v in (device, cpu) if isinstance(v, str) and v]
        lines.append(f"- Hardware: {', '.join(known) or 'not known'}")
        versions = summary.get("versions")
        if isinstance(versions, dict):
            said = ", ".join(f"{code(k, 20)} {code(v, 40)}" for k, v in list(versions.items())[:10])
            lines.append(f"- Versions: {said}")
        commit = summary.get("git_commit")
        said = code(commit, 64) if isinstance(commit, str) else "not known"
        lines.append(f"- Git commit of the working folder: {said}")
    return lines


def _limits(record: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "## Limits",
        "",
        f"- It knows its {len(record['classes']):,} classes only: an image of anything else gets "
        "one of them, maybe with a high probability.",
        "- Its probabilities were not calibrated.",
        "- How it does on images from elsewhere (another camera, country, year), and whether it "
        "does worse on some groups of people or things, was not measured.",
        "- Who may use the images and these weights, and for what, the run does not tell: no "
        "licence is stated here.",
    ]
    if results is not None:
        lines.insert(3, "- One run, one seed: how much another seed would differ is not known.")
    return lines
