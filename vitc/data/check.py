"""What is wrong with a data set, and what cures it? `vitc data check`. Free of torch.

Every image is looked at once (`check_images`); findings are pure functions of what was seen there,
in the order of the source, so they are the same for any number of processes. Nothing is written,
and no file is changed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from vitc.data.check_classes import class_findings
from vitc.data.check_copies import copy_findings
from vitc.data.check_files import file_findings, litter_findings, size_findings
from vitc.data.check_images import Progress, Work, look_at_all
from vitc.data.check_report import SEVERITIES, Finding, Report
from vitc.data.config import DataConfig
from vitc.data.dataset import open_data, read_source
from vitc.data.sources.base import Found, Split
from vitc.data.sources.folder import scan_folder
from vitc.data.store import Names
from vitc.errors import DataError
from vitc.machine import cores


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
    classes, splits, notes, refusals = _opened(config)
    labels = {name: np.bincount(s.labels, minlength=len(classes)) for name, s in splits.items()}
    total = sum(map(len, splits.values()))
    positions = np.arange(total)
    if sample is not None and sample < total:
        positions = np.unique(np.linspace(0, total - 1, sample).round().astype(np.int64))
        notes.append(
            f"Only {sample:,} of {total:,} images, evenly spaced, were examined: copies "
            "and faults of the others are not seen."
        )
    looked = look_at_all(Work(list(splits.values())), positions, workers or cores(), progress)
    report = Report(
        config=config,
        classes=classes,
        splits=splits,
        counts={name: part.astype(np.int64) for name, part in labels.items()},
        names=Names.of(n for split in splits.values() for n in split.names),
        positions=positions,
        records=looked.records,
        details=looked.details,
        notes=tuple(notes),
        cores=cores(),
    )
    found = [*refusals, *file_findings(report), *copy_findings(report, looked.minis)]
    found += [*class_findings(report), *size_findings(report), *litter_findings(report)]
    found.sort(key=lambda f: SEVERITIES.index(f.severity))  # stable: in the order they are made
    report.findings.extend(found)
    return report


# -- what is there ---------------------------------------------------------------------------------


def _opened(
    config: DataConfig,
) -> tuple[tuple[str, ...], dict[str, Split], list[str], list[Finding]]:
    """Classes and splits as training has them; where it would refuse them, as far as possible."""
    try:
        data = open_data(config)
        return data.classes, data.splits, list(data.notes), []
    except DataError as e:
        refusal = Finding("refused", "stop", 1, e.message, e.hint or "Repair it.")
    found: Found | None = None
    with contextlib.suppress(DataError):
        found = read_source(config)  # its own splits, with nothing held out
    if found is None and config.source == "folder":
        with contextlib.suppress(DataError):  # whatever a folder holds
            found = scan_folder(Path(str(config.path)).expanduser(), strict=False)
    if found is None:
        return (), {}, [], [refusal]
    return found.classes, found.splits, list(found.notes), [refusal]
