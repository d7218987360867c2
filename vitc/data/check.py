"""What is wrong with a data set, and what cures it? `vitc data check`. Free of torch.

Every image is read once (`check_images`); the findings (`check_findings`) follow from its record,
in the order of the source, so they are the same for any number of processes. Nothing is written.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from vitc.data.check_classes import class_findings
from vitc.data.check_copies import copy_findings
from vitc.data.check_findings import file_findings, size_findings
from vitc.data.check_folder import stray_findings
from vitc.data.check_groups import group_findings, groups_checked, seen_in
from vitc.data.check_images import look_at_all
from vitc.data.check_masks import mask_findings
from vitc.data.check_report import SEVERITIES, Finding, Report, class_counts
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data, read_source
from vitc.data.pool import Progress
from vitc.data.sources.base import Found, Split
from vitc.data.sources.folder import scan_folder
from vitc.data.split_words import parse_splits
from vitc.errors import DataError
from vitc.machine import cores
from vitc.wording import counted


def check(
    config: DataConfig,
    *,
    workers: int | None = None,
    sample: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Examine the data set that `config` names, or `sample` of its images, evenly spaced.

    Raises ConfigError: a wrong path or setting; RunError: a process died on a file.
    """
    classes, splits, given, notes, refusals = _opened(config)
    total = sum(map(len, splits.values()))
    positions = np.arange(total)
    if sample is not None and sample < total:
        positions = np.unique(np.linspace(0, total - 1, sample).round().astype(np.int64))
        notes.append(
            f"Only {sample:,} of {total:,} images, evenly spaced, were examined: broken images "
            "and copies among the others are not found."
        )
    looked = look_at_all(splits, positions, workers or cores(), progress)
    report = Report(
        config=config,
        classes=classes,
        splits=splits,
        counts=class_counts(splits, classes),
        given=given,
        positions=positions,
        records=looked.records,
        details=looked.details,
        notes=tuple(notes),
    )
    seen = seen_in(report)
    report.checked.update(_checked(report), **groups_checked(seen))
    found = [
        *refusals,
        *file_findings(report),
        *mask_findings(report),
        *copy_findings(report, looked.minis, seen),
        *group_findings(seen),
        *class_findings(report),
        *size_findings(report),
        *stray_findings(report),
    ]
    report.findings.extend(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))
    return report


def _checked(report: Report) -> dict[str, str]:
    """What was looked for, and among how many images; or why not."""
    read, total = len(report.positions), len(report.names)
    tested = [
        name
        for name in report.counts
        if name != "train" and (name in report.given or report.config.group is not None)
    ]
    folder = report.config.source == "folder"
    return {
        "image_files": f"{read:,} of {total:,} decoded",
        "copies": f"{int(report.readable.sum()):,} images",
        "classes": counted(len(report.classes), "class", "classes"),
        "label_shares": " and ".join(tested) or "not checked: held out class by class, they agree",
        "other_files": "all of the folder" if folder else "not checked: no folder of images",
    }


def _opened(
    config: DataConfig,
) -> tuple[tuple[str, ...], dict[str, Split], frozenset[str], list[str], list[Finding]]:
    """Classes, splits, those that the source has itself, notes; and why training would refuse it:
    then they are as the source has them."""
    refusals = []
    found: Found | None = None
    try:
        data = open_data(config)
        return data.classes, data.splits, data.given, list(data.notes), []
    except DataError as e:
        refusals = [Finding("refused", "stop", 1, e.message, e.hint or "Repair it.")]
    with contextlib.suppress(DataError):
        found = read_source(config)  # its own splits, with nothing held out
    if found is None and config.source == "folder":
        with contextlib.suppress(DataError):  # whatever a folder holds
            wanted = parse_splits(config.splits) if config.splits else None
            found = scan_folder(Path(str(config.path)).expanduser(), wanted, strict=False)
    if found is None:
        return (), {}, frozenset(), [], refusals
    return found.classes, found.splits, frozenset(found.splits), list(found.notes), refusals
