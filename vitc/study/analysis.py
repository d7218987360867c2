"""From study folders to the sections of a report: results, what they show, the paper beside it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vitc.errors import ConfigError, DataError
from vitc.runs.images import ALLOW
from vitc.study import images
from vitc.study.across import with_sensitivity
from vitc.study.design import HPARAMS, MUST_AGREE, TUNING, Plan, settings_of
from vitc.study.measures import measure_of
from vitc.study.paper.beside import beside
from vitc.study.paper.claims import claim_values, claims_table
from vitc.study.paper.second import with_second_test_set
from vitc.study.results import (
    Protocol,
    Result,
    Section,
    protocol_notes,
    results_of,
    unsuccessful,
)
from vitc.study.study_folder import StudyFolder, looks_taken


@dataclass(frozen=True)
class _Study:
    """One study, or several that are read as one, before anything is concluded."""

    plan: Plan
    records: list[dict[str, Any]]
    folders: list[Path]
    results: list[Result]
    notes: list[str]
    tuning: list[Result] = field(default_factory=list)
    """The draws that the settings were chosen from."""


def analyse(
    folders: Sequence[Path], protocol: Protocol = "last", allow_changed_data: bool = False
) -> list[Section]:
    """One section a study; random draws with the same ranges, seed and budget become one.

    `protocol`: a run's error is that after its last epoch, or the least of all its epochs ("paper",
    as in the authors' sweeps). Finished or not. Raises ConfigError: no folder, one that is not a
    study, or of an unknown measure; DataError: the images changed between trials, unless
    `allow_changed_data`: what was run on different images is then not compared.
    """
    if not folders:
        raise ConfigError("No study is given.", "For example: vitc report studies/quick")
    studies: list[_Study] = []
    for folder in folders:
        study = _read(folder, protocol, allow_changed_data)
        others = [s for s in studies if s.plan.measure == study.plan.measure]
        if not measure_of(study.plan.measure).joins:
            studies.append(study)
            continue
        apart = {id(s): _apart(s, study) for s in others}
        home = next((s for s in others if not apart[id(s)]), None)
        if home is not None:
            studies[studies.index(home)] = _joined(home, study)
        else:
            why = [_not_joined(s, study, apart[id(s)], allow_changed_data) for s in others]
            studies.append(replace(study, notes=[*study.notes, *why]))
    studies.sort(key=lambda s: s.plan.measure != HPARAMS)
    return with_sensitivity([_section(s, protocol) for s in studies])


def _read(folder: Path, protocol: Protocol, allow_changed_data: bool) -> _Study:
    study = StudyFolder(folder)
    plan, record = study.read()
    measure_of(plan.measure)
    plan = study.with_sources(plan)
    found = results_of(study, plan, protocol)
    results, notes = images.comparable(folder, found, allow_changed_data)
    plan = replace(plan, looks=max(plan.looks, looks_taken(record)[0]))
    inside, tuning = StudyFolder(folder / TUNING), []
    if inside.exists():
        first, _ = inside.read()
        tuning = results_of(inside, inside.with_sources(first))
    notes = [*notes, *images.mixed_data(plan)]
    return _Study(plan, [record], [folder], results, notes, tuning)


def _not_joined(a: _Study, b: _Study, why: Sequence[str], allow_changed_data: bool) -> str:
    """Why two studies are sections apart. Raises DataError: images of one place changed between
    them, unless `allow_changed_data`."""
    difference = images.images_apart([*a.results, *b.results])
    if difference is None:
        return f"Not joined with {a.folders[0]}: they differ in {', '.join(why)}."
    text = f"{a.folders[0]} and {b.folders[0]} were run on different images"
    paths = [{g.config.data.path for g in s.plan.groups} for s in (a, b)]
    if paths[0] == paths[1] and not allow_changed_data:
        raise DataError(
            f"{text}: {difference}.",
            f"Run both on the same images. {ALLOW} reports each on its own, not compared.",
        )
    return f"{text} and are not compared: {difference}."


def _apart(a: _Study, b: _Study) -> list[str]:
    """What keeps two studies from being one: their contenders would form no fair pairs."""
    same_draws = (a.plan.ranges, a.plan.seed) == (b.plan.ranges, b.plan.seed)
    found = [] if same_draws else ["draws"]
    if any(g.ranges is not None for g in (*a.plan.groups, *b.plan.groups)):
        found.append("ranges of single contenders")
    found += [
        name
        for name, read in {**MUST_AGREE, "data": images.data_settings}.items()
        if settings_of(a.plan.groups, read) != settings_of(b.plan.groups, read)
    ]
    if images.images_apart([*a.results, *b.results]) is not None:
        found.append("images")
    if _environment(a)["versions"] != _environment(b)["versions"]:
        found.append("versions")
    return found


def _environment(study: _Study) -> Mapping[str, Any]:
    found: Mapping[str, Any] = study.records[0]["environment"]
    return found


def _joined(home: _Study, new: _Study) -> _Study:
    """Both as one study; a contender that both have takes the new one's name as well, which is
    numbered where that is not enough, as of three studies of one name."""
    taken, names = set(home.plan.contenders), {}
    for c in new.plan.contenders:
        others = taken | (set(new.plan.contenders) - {c})
        numbered = (f"{c} ({new.plan.name} {i})" for i in itertools.count(2))
        names[c] = next(
            n for n in itertools.chain([c, f"{c} ({new.plan.name})"], numbered) if n not in others
        )
        taken.add(names[c])
    groups = [replace(g, contender=names[g.contender]) for g in new.plan.groups]
    notes = [*home.notes, *new.notes]
    if _environment(home)["hardware"] != _environment(new)["hardware"]:
        notes.append(f"{new.folders[0]} ran on other hardware than {home.folders[0]}.")
    return _Study(
        plan=replace(
            home.plan,
            name=f"{home.plan.name} + {new.plan.name}",
            groups=(*home.plan.groups, *groups),
            draws=max(home.plan.draws, new.plan.draws),
            looks=max(home.plan.looks, new.plan.looks),
        ),
        records=[*home.records, *new.records],
        folders=[*home.folders, *new.folders],
        results=[
            *home.results,
            *(replace(r, contender=names[r.contender]) for r in new.results),
        ],
        notes=notes,
    )


def _exploratory(study: _Study) -> str:
    """Why the study no longer shows what its plan promised; empty where it does."""
    unplanned = [what for record in study.records for what in looks_taken(record)[1]]
    if not unplanned:
        return ""
    return (
        f"Exploratory: {'; '.join(unplanned)}, which was not planned (--looks). Extending a "
        "study until a difference appears inflates the false-positive rate; p-values and intervals "
        f"here count {study.plan.looks} looks, as if they had been planned."
    )


def _section(study: _Study, protocol: Protocol) -> Section:
    """What the measure finds, with the second test set, the claims and the paper's numbers."""
    plan, results = study.plan, study.results
    finding = measure_of(plan.measure).read(plan, results, study.tuning)
    notes = [*study.notes, *protocol_notes(plan, protocol), *finding.warnings]
    if plan.measure != HPARAMS:
        notes += unsuccessful(plan, results)
    section = Section(
        plan=plan,
        records=study.records,
        folders=[str(f) for f in study.folders],
        results=results,
        finding=replace(finding, warnings=notes),
        protocol=protocol,
        exploratory=_exploratory(study),
    )
    section = with_second_test_set(section)
    claimed = claims_table(section)
    finding = section.finding
    tables = [*finding.tables, *([claimed] if claimed else []), *beside(section)]
    values = {**finding.values, "claims": claim_values(section)}
    return replace(section, finding=replace(finding, tables=tables, values=values))
