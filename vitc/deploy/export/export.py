"""How does a model become one file that answers as it did? Written, read again, compared, kept."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.data.sources.base import Split
from vitc.deploy.classifier import Classifier, Ensemble
from vitc.deploy.evaluation import kept_fit
from vitc.deploy.export.base import Format, Made, Precision, Record
from vitc.deploy.export.calibration import Calibration, choose_calibration
from vitc.deploy.export.compare import (
    Answers,
    ExportReport,
    answers_of,
    compare,
    size_of,
    spread_over,
)
from vitc.deploy.export.formats import format_of
from vitc.deploy.export.graph import Prepare, program_of
from vitc.deploy.measures import TARGETS, Fit, fit, no_fit
from vitc.deploy.saved import Saved
from vitc.errors import ConfigError, RunError, unknown
from vitc.files import TEMPORARY, sync_file, sync_folder, to_json
from vitc.models.folding import folded
from vitc.training.measured import Asked, Measured, choose_images
from vitc.wording import counted

AGREEMENT = {"fp32": 99.9, "int8": 95.0}  # percent
NOT_YET = no_fit("", "", 0)


@dataclass(frozen=True)
class Options:
    """How a model is exported, and on what it is compared.

    precision: "fp32", or "int8": quantized with images of the training split, where there is one.
    raw_input: the graph takes prepared, normalised float32 (B, C, h, w). data: images to compare
    on; None: the run's validation split. images: at most so many of them. min_agreement: percent of
    images on which both have to answer the same class; None: 99.9, for int8 95. overwrite: replace
    the file and those beside it.
    """

    precision: Precision = "fp32"
    raw_input: bool = False
    weights: str = "ema"
    data: str | None = None
    images: int = 2000
    min_agreement: float | None = None
    overwrite: bool = False
    allow_changed_data: bool = False


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str | None = None,
    **options: Any,
) -> ExportReport:
    """Export a run or saved model as the file `out`, and compare the two on validation images.

    format: onnx, openvino, torch or safetensors; None: by the suffix of `out`. options: those of
    `vitc.deploy.export.export.Options`. `out` appears once the comparison has passed, with
    OUT.json beside it, which holds the report. Raises ConfigError: a wrong suffix or option, a
    missing extra; RunError: the graph cannot be exported, the comparison failed, or `out` cannot
    be written; others as `vitc.evaluate`.
    """
    out = Path(os.path.realpath(out) if os.path.islink(out) else out)  # a link stays one
    form = format_of(out, format)
    o = _checked(options, form, out)
    classifier = Classifier.load(run, "cpu", o.weights)
    # Whether two models give the same answer can be seen on images that they were trained on, too.
    asked = Asked(o.data, None, o.allow_changed_data, trained_on=True, others=_others(run, out))
    images = choose_images(classifier.training, asked)
    least = AGREEMENT[o.precision] if o.min_agreement is None else o.min_agreement
    calibration = None
    if o.precision == "int8":
        calibration = choose_calibration(classifier, images, o.data, o.images)
    chosen = calibration.compared if calibration else spread_over(images.split, o.images)
    before = answers_of(classifier, chosen)
    # In int8 confidences are others: what is fitted on them is known once the file is written.
    fitted = NOT_YET if calibration else kept_fit(classifier) or _fitted(images, before)
    record = _record(classifier, form, o, fitted)
    made = _made(classifier, form, record, calibration)
    with _new_files(out) as file:
        report, after = _written(made, form, file, classifier, before, chosen)
        resizes = form.own_resize and record.input == "image" and o.precision == "fp32"
        if report.agreement < least and resizes:
            for part in file.parent.iterdir():
                part.unlink()
            made = _made(classifier, form, record, exact_resize=True)
            report, after = _written(made, form, file, classifier, before, chosen)
        if calibration:
            fitted = _fitted(images, after)
            record = _record(classifier, form, o, fitted)
            form.replace_record(file, record)
            note, shared = calibration.note, calibration.shared
            report = replace(report, size=size_of(file), calibration=note, calibrated=shared)
        report = replace(
            report,
            path=out,
            run=str(run),
            images=images.name,
            not_fitted=_not_fitted(record, fitted),
        )
        if not report.agreement >= least:
            raise _disagreement(report, least)
        text = to_json(report.to_dict(), indent=2) + "\n"
        _report_of(file).write_text(text, encoding="utf-8")
    return report


def _written(
    made: Made, form: Format, file: Path, original: Classifier, before: Answers, split: Split
) -> tuple[ExportReport, Answers]:
    """Write the file, read it again, and compare it with what the original answered `before`."""
    form.write(made, file)
    exported = Classifier.load(file, "cpu")
    after = answers_of(exported, split)
    report = ExportReport(
        path=file,
        run="",
        format=form.kind,
        precision=made.record.precision,
        input=made.record.input,
        images="",
        exact_resize=made.exact_resize,
        kept_float=tuple(made.kept_float),
        **compare(original, exported, before, after, file),
    )
    return report, after


def _report_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.json")


def _fitted(images: Measured, answers: Answers) -> Fit:
    """On validation images, unless some of them were trained on."""
    n = len(answers.labels)
    if images.trained_on:
        why = f"{images.trained_on:,} of the {counted(len(images.split), 'image')} were trained on"
        return no_fit(why, images.name, n)
    if images.name != "val":
        return no_fit("the images compared on are no validation split", images.name, n)
    return fit(answers.labels, answers.logits, "val")


def _not_fitted(record: Record, fitted: Fit) -> str:
    """What the file lacks, and why."""
    what = "temperature" if record.thresholds else "temperature or thresholds"
    return f"The file has no {what}: {fitted.why}." if fitted.why else ""


def _others(run: str | os.PathLike[str], out: Path) -> str:
    command = shlex.join(["vitc", "export", os.fspath(run), str(out), "--data"])
    return f"labelled images that it was not trained on, to compare on: {command} FOLDER"


def _checked(options: dict[str, Any], form: Format, out: Path) -> Options:
    names = [field.name for field in fields(Options)]
    for name in options:
        if name not in names:
            raise unknown("option", name, names)
    o = Options(**options)
    if o.precision not in get_args(Precision):
        raise unknown("precision", o.precision, get_args(Precision))
    if o.precision not in form.precisions:
        raise ConfigError(
            f"{out} cannot be in {o.precision}: {form.title} holds {' or '.join(form.precisions)}.",
            f"Write ONNX or OpenVINO: {out.with_suffix('.onnx')} or {out.with_suffix('.xml')}",
        )
    if o.raw_input and not form.graph:
        raise ConfigError(f"raw_input has no effect: {form.title} holds no graph.")
    if o.min_agreement is not None and not 0 <= o.min_agreement <= 100:
        raise ConfigError(f"min_agreement is {o.min_agreement}; it must be 0 to 100 (percent).")
    if o.images < 1:
        raise ConfigError(f"images is {o.images}; it must be at least 1.")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder.", f"Name a file: {out / ('model' + form.suffix)}")
    for file in (out, _report_of(out), *(out.with_suffix(suffix) for suffix in form.beside)):
        if file.exists() and not o.overwrite:
            raise ConfigError(f"{file} exists.", "Choose another name, or add --overwrite.")
    form.check_installed(*form.packages, *(form.int8_packages if o.precision == "int8" else ()))
    return o


def _record(c: Classifier, form: Format, o: Options, fitted: Fit) -> Record:
    if c.record is None and isinstance(c.model, Ensemble) and not form.graph:
        raise ConfigError(
            f"{c.name} has the weights of several models, which {form.title} cannot hold.",
            "Export their graph: OUT.onnx",
        )
    saved = Saved(c.config.model, len(c.classes), c.classes, c.preprocessing, None)
    pairs = zip(TARGETS, fitted.thresholds, strict=False)
    return Record(
        saved=saved,
        input="tensor" if o.raw_input or not form.graph else "image",
        precision=o.precision,
        weights=c.weights,
        temperature=fitted.temperature,
        thresholds={f"{t:g}": level for t, level in pairs} or None,
    )


def _made(
    c: Classifier,
    form: Format,
    record: Record,
    calibration: Calibration | None = None,
    exact_resize: bool = False,
) -> Made:
    if not form.graph:
        return Made(None, c.model, record)
    p = c.preprocessing
    assert p.img_size is not None
    if record.input == "tensor":
        example, prepare = torch.zeros(2, c.in_chans, *p.img_size), None
    else:  # of another size, or the box of a whole image would be taken for every box
        height, width = (side + 32 for side in p.img_size)
        example = torch.zeros(2, height, width, c.in_chans, dtype=torch.uint8)
        prepare = Prepare(p, exact_resize)
    model = folded(c.model).to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    program = program_of(model, prepare, example)
    ranges = _graph_input(c, record, calibration.images) if calibration else None
    return Made(program, model, record, ranges, exact_resize)


def _graph_input(c: Classifier, record: Record, prepared: Tensor) -> NDArray[Any]:
    """Prepared images, uint8 (N, C, h, w), as the graph takes them."""
    if record.input == "tensor":
        return c.normalise(prepared).contiguous().numpy()
    return prepared.permute(0, 2, 3, 1).contiguous().numpy()


def _disagreement(r: ExportReport, least: float) -> RunError:
    differ = round((100 - r.agreement) * r.n / 100)
    return RunError(
        f"The export answers as the original on {r.agreement:.2f} % of {r.n:,} images, below the "
        f"{least:g} % required; top-1 {r.top1_original:.2f} % became {r.top1:.2f} %, logits differ "
        f"by up to {r.max_diff:.2g}. No file was written.",
        f"{differ:,} images differ, such as {', '.join(r.disagree[:3])}. "
        "--min-agreement P accepts less.",
    )


@contextmanager
def _new_files(out: Path) -> Iterator[Path]:
    """A file of the same name in a new folder; after the block it and those beside it replace
    those beside `out`, which comes last. Raises RunError: a file cannot be written."""
    temporary = out.with_name(f"{TEMPORARY}{out.name}-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary / out.name
        for file in sorted(temporary.iterdir(), key=lambda f: f.name == out.name):
            sync_file(file)
            os.replace(file, out.with_name(file.name))
        sync_folder(out.parent)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written: {error.strerror or error}.",
            "Free space or choose another folder. No partial files were left.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
