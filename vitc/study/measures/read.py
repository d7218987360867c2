"""A measure's folder, read: which function reads which measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitc.errors import unknown
from vitc.study.design import HPARAMS, Plan, StudyFolder
from vitc.study.measures.findings import Finding, Parts
from vitc.study.measures.length import length, optimizer
from vitc.study.measures.peak import peak
from vitc.study.measures.seeds import seeds, vary
from vitc.study.results import Protocol, Row, protocol_notes, rows_of

MEASURES: dict[str, Callable[[Plan, Sequence[Row]], Parts]] = {
    "length": length,
    "optimizer": optimizer,
    "peak": peak,
    "seeds": seeds,
    "vary": vary,
}


def find(folder: Path, protocol: Protocol = "last") -> Finding:
    """Read one measure's folder, finished or not; `protocol` as of `analysis.analyse`.

    Raises ConfigError: no study, or of no measure that is known here.
    """
    study = StudyFolder(folder)
    plan, record = study.read()
    if plan.measure not in MEASURES:
        raise unknown("measure", plan.measure, [HPARAMS, *MEASURES])
    rows = rows_of(study, study.with_sources(plan), protocol)
    troubles = [
        f"{sum(r.status == s for r in rows)} of {len(rows)} runs {s}"
        + ("; they count as chance error" if s == "diverged" else "; they are left out")
        for s in ("diverged", "failed")
        if any(r.status == s for r in rows)
    ]
    return Finding(
        name=plan.name,
        plan=plan,
        records=[record],
        folders=[str(folder)],
        rows=rows,
        parts=MEASURES[plan.measure](plan, rows),
        notes=[*protocol_notes(plan, protocol), *plan.about, *troubles],
        protocol=protocol,
        unfinished=sum(r.status in ("waiting", "running", "interrupted") for r in rows),
    )
