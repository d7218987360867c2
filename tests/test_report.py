"""The report: what it says of known numbers, that nothing injects, and how a browser shows it."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.browser import Tags, measured
from tests.invented import HERE, invent
from vitc.errors import ConfigError
from vitc.study.analysis import analyse
from vitc.study.design import Plan
from vitc.study.measures.hparams import hparams_plan
from vitc.study.reporting import report
from vitc.study.results import Section
from vitc.study.study_folder import StudyFolder
from vitc.study.trials_file import Columns
from vitc.study.trials_report import trials_report

Error = Callable[[str, str, int], float | None]  # (contender, optim, draw) -> error, None: diverged


def invented(
    path: Path,
    error: Error,
    draws: int = 12,
    optims: tuple[str, ...] = ("adamw",),
    rename: dict[str, str] | None = None,
    control: bool = True,
    **words: Any,
) -> Path:
    """A study of random draws of a ViT_C and a ViT_P with these errors."""
    models = ["vit_c_tiny", "vit_p_tiny"]
    plan = hparams_plan(["debug"], models, optims, draws=draws, control=control, **words)
    plan = renamed(plan, rename or {})
    invent(StudyFolder(path), plan, lambda t: error(t.contender, t.optim, t.draw), curves=True)
    return path


def renamed(plan: Plan, names: dict[str, str]) -> Plan:
    groups = tuple(
        dataclasses.replace(g, contender=names.get(g.contender, g.contender)) for g in plan.groups
    )
    return dataclasses.replace(
        plan, groups=groups, reference=names.get(plan.reference, plan.reference)
    )


def easier(contender: str, optim: str, draw: int) -> float | None:
    """ViT_C ahead by about 6 points on every draw, and ViT_P diverging once."""
    if contender == "vit_c_tiny":
        return 30 + draw + 0.1 * (draw % 3)
    return None if draw == 11 and contender == "vit_p_tiny" else 36 + draw + 0.3 * (draw % 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Section]]:
    """The page and the sections of one study, made once for the tests that only read them."""
    return report([invented(tmp_path_factory.mktemp("made") / "s", easier)])


def test_a_real_difference_is_named_with_its_interval(made: tuple[Path, list[Section]]) -> None:
    (section,) = made[1]
    c = section.finding.contrasts[0]
    assert (c.contender, c.reference, c.found.verdict) == ("vit_c_tiny", "vit_p_tiny", "lower")
    assert c.found.difference == pytest.approx(-6, abs=0.2)
    assert c.found.interval == pytest.approx((-6.2, -5.9), abs=0.1)
    assert (c.won, c.found.n, c.pairs) == (11, 11, 12)
    assert "lower than vit_p_tiny's by 6." in section.finding.verdict[0]


def test_failures_to_learn_are_counted_apart_and_listed(made: tuple[Path, list[Section]]) -> None:
    page, sections = made
    p = next(g for g in sections[0].finding.draws if g.contender == "vit_p_tiny")
    assert (p.failed_to_learn, p.count("diverged")) == (1, 1)
    assert max(p.errors) == 90  # of ten classes, in curves over all draws
    assert sections[0].finding.contrasts[0].found.failures["only_b"] == 1
    assert "Diverged at &lt;b&gt;step 3" in page.read_text()


def test_a_run_near_chance_failed_to_learn_though_it_is_finite(tmp_path: Path) -> None:
    stuck = {0: 90.0, 1: 89.4, 2: 80.0}

    def error(contender: str, optim: str, draw: int) -> float:
        return stuck.get(draw, 40.0 + draw) if contender == "vit_c_tiny" else 41.0 + draw

    (section,) = analyse([invented(tmp_path / "s", error)])
    c = section.finding.contrasts[0]
    assert c.found.failures["a"] == 2  # 80 % is below the line of ten classes, 81 %
    assert (c.found.n, c.found.difference) == (10, pytest.approx(-1.0))
    (note,) = [w for w in section.finding.warnings if "failed to learn" in w]
    assert "2 ended near chance (89.4 to 90.0 %)" in note


def test_the_line_is_that_of_the_validation_images(tmp_path: Path) -> None:
    """Where nine in ten images are of one class, 20 % error is worse than constant answers."""
    study = invented(tmp_path / "s", lambda c, o, d: 20.0 if d < 3 else 5.0 + 0.1 * d)
    for trial in (study / "trials").iterdir():
        record = {"counts": {"val": 1000}, "largest_class": {"val": 0.9}}
        (trial / "data.json").write_text(json.dumps(record))
    (section,) = analyse([study])
    assert section.finding.contrasts[0].found.failures["a"] == 3


def dies(contender: str, optim: str, draw: int) -> float | None:
    """ViT_C 6 points ahead where it trains, in three draws of five."""
    if contender == "vit_c_tiny":
        return None if draw % 5 in (1, 3) else 30 + draw % 7
    return 36 + draw % 7 + 0.1 * (draw % 3)


def test_better_and_dying_is_no_winner_and_both_facts_are_on_the_first_screen(
    tmp_path: Path,
) -> None:
    page, (section,) = report([invented(tmp_path / "s", dies, draws=20)])
    verdict, table = section.finding.verdict[0], section.finding.tables[0]
    assert section.finding.contrasts[0].found.verdict == "mixed"
    assert "o winner" in verdict
    assert "lower by 6.1 points" in verdict
    assert "8 of 20 draws" in verdict
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["verdict"] == "mixed"
    assert cells["failed to learn"] == "8 of 20, against 0"
    first, _, rest = page.read_text().partition("<svg")
    assert all(x in first for x in ("No winner", "lower by 6.1 points", "8 of 20 draws"))
    assert all(x in rest.partition("<table")[0] for x in ("no winner", "8 : 0", "of 20"))


@pytest.mark.usefixtures("undrawn")
def test_all_contenders_and_controls_are_in_the_verdict_in_forty_words_each(
    tmp_path: Path,
) -> None:
    for i, error in enumerate((easier, dies, lambda c, o, d: 40 + (7 * d + len(c)) % 10)):
        study = invented(tmp_path / str(i), error, optims=("adamw", "sgd"))
        (section,) = analyse([study])
        named = [(c.contender, c.optim) for c in section.finding.contrasts]
        assert sorted(named) == [
            (c, o) for c in ("vit_c_tiny", "vit_p_tiny again") for o in ("adamw", "sgd")
        ]
        assert len(section.finding.verdict) == 2
        assert sum("A/A control" in r for r in section.finding.remarks) == 2
        assert max(len(v.split()) for v in section.finding.sentences) <= 40


def test_a_control_costs_the_comparisons_nothing(tmp_path: Path) -> None:
    with_control, without = (
        analyse([invented(tmp_path / str(c), easier, control=c)])[0].finding.contrasts[0]
        for c in (True, False)
    )
    assert with_control.found == without.found


def test_equivalence_is_asked_for_with_a_margin(tmp_path: Path) -> None:
    def alike(contender: str, optim: str, draw: int) -> float:
        return 40 + draw + 0.1 * (-1) ** draw * (contender == "vit_c_tiny")

    study = invented(tmp_path / "s", alike, margin=1.0)
    assert analyse([study])[0].finding.contrasts[0].found.verdict == "equivalent"
    assert (
        analyse([invented(tmp_path / "t", alike)])[0].finding.contrasts[0].found.verdict == "open"
    )


@pytest.mark.usefixtures("undrawn")
def test_an_extension_that_was_not_planned_makes_the_page_exploratory(tmp_path: Path) -> None:
    folders = {k: StudyFolder(invented(tmp_path / str(k), easier, looks=k)) for k in (1, 2)}
    for looks, folder in folders.items():
        (before,) = analyse([folder.path])
        assert (before.exploratory, before.plan.looks) == ("", looks)
        folder.start(dataclasses.replace(folder.read()[0], draws=24), HERE, "vitc study")
        (after,) = analyse([folder.path])
        assert (bool(after.exploratory), after.plan.looks) == (looks == 1, 2)
    page, _ = report([folders[1].path])
    assert "Exploratory" in page.read_text()
    values = json.loads((page.parent / "results.json").read_text())["sections"][0]
    assert "from 12 to 24" in values["exploratory"]
    planned = folders[2]
    planned.start(dataclasses.replace(planned.read()[0], draws=48), HERE, "vitc study")
    assert "from 24 to 48" in analyse([planned.path])[0].exploratory, "a third look of two"


def test_more_than_twice_the_draws_was_not_planned(tmp_path: Path) -> None:
    folder = StudyFolder(invented(tmp_path / "s", easier, draws=4, looks=3))
    folder.start(dataclasses.replace(folder.read()[0], draws=9), HERE, "vitc study")
    assert "from 4 to 9" in analyse([folder.path])[0].exploratory


@pytest.mark.usefixtures("undrawn")
def test_the_papers_protocol_takes_the_best_epoch_and_says_so(tmp_path: Path) -> None:
    study = invented(tmp_path / "s", easier)
    for file in study.glob("trials/*/summary.json"):
        summary = json.loads(file.read_text())
        if summary["status"] == "done":
            summary["top1_best"] = summary["top1"] + 5
            file.write_text(json.dumps(summary))
    last, (before,) = report([study])
    paper, (after,) = report([study], protocol="paper")
    assert (last.parent.name, paper.parent.name) == ("report", "report_paper")
    for a, b in zip(before.results, after.results, strict=True):
        assert a.error is not None
        assert b.error == pytest.approx(a.error - (5 if a.status == "done" else 0))
    assert json.loads((paper.parent / "results.json").read_text())["protocol"] == "paper"
    assert "minimum over epochs" in paper.read_text()
    assert "minima over a run&#39;s epochs" in paper.read_text()
    assert "minimum over epochs" not in last.read_text()
    assert f"vitc report {study} --protocol paper" in paper.read_text()


@pytest.mark.slow
def test_a_page_for_a_repository_holds_figures_trials_and_the_papers_claim(tmp_path: Path) -> None:
    study = invented(tmp_path / "s", easier, rename={"vit_p_tiny again": "a|b <i>*x*"})
    page = tmp_path / "docs" / "easier.md"
    report([study], page=page)
    text = page.read_text()
    assert "**vit_c_tiny's error is lower than vit_p_tiny's by 6." in text
    assert "| more of the learning rates come near its best (5.3) |" in text
    assert f"vitc report {study} --page {page}" in text
    assert r"a\|b \<i\>\*x\*" in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert {"easier/trials.csv", "easier/results.json", "easier/edf_0_adamw.png"} <= set(linked)
    assert all((page.parent / name).is_file() for name in linked)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    heads = [i for i, line in enumerate(tables) if line.startswith("| ---")]
    for start, end in zip(heads, [*heads[1:], len(tables) + 1], strict=True):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in tables[start - 1 : end - 1]}
        assert len(bars) == 1  # as many cells in every row, whatever a name holds
    report([study], page=page)  # again over its own page


@pytest.mark.parametrize("name", ["page.html", "taken.md"])
def test_a_page_is_markdown_and_takes_no_others_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    study = invented(tmp_path / "s", easier)
    with pytest.raises(ConfigError, match=r"Markdown|trials\.csv"):
        report([study], page=tmp_path / name)
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["mine.txt"]
    assert not (study / "report").exists()


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_study_reports_what_it_has(tmp_path: Path) -> None:
    path = invented(tmp_path / "s", easier, draws=3, control=False)
    first = sorted((path / "trials").iterdir())[0]
    shutil.rmtree(first)
    page, sections = report([path])
    assert sections[0].unfinished == 1
    assert "1 trial without a result is not included." in page.read_text()


def test_files_beside_the_page_hold_every_trial(made: tuple[Path, list[Section]]) -> None:
    page, _ = made
    rows = list(csv.DictReader((page.parent / "trials.csv").read_text().splitlines()))
    assert len(rows) == 36
    assert {r["status"] for r in rows} == {"done", "diverged"}
    assert all(float(r["optim.lr"]) > 0 for r in rows)
    results = json.loads((page.parent / "results.json").read_text())
    assert results["sections"][0]["comparisons"][0]["difference"] < -5
    table = (page.parent / "table.tex").read_text()
    row = r"vit\_c\_tiny & vit\_p\_tiny & adamw & 11 & $-$6.0 [$-$6.2, $-$5.9] & $<$ 0.001"
    assert row in table
    assert "0 / 1 of 12 & lower" in table
    kinds: dict[str, set[str]] = {}
    for file in (page.parent / "figures").iterdir():
        kinds.setdefault(file.stem, set()).add(file.suffix)
    assert kinds["edf_0_adamw"] == {".svg", ".png", ".pdf"}
    assert kinds["claim_0_adamw_0"] == kinds["forest_0"] == {".svg", ".png", ".pdf"}
    assert kinds["curves_0_adamw"] == {".svg", ".pdf"}, "in the report alone"


def test_studies_of_other_versions_or_precision_are_not_joined(tmp_path: Path) -> None:
    a, b = (invented(tmp_path / name, easier, draws=8, control=False) for name in "ab")
    record = json.loads((b / "plan.json").read_text())
    record["environment"]["versions"]["torch"] = "2.1.0"
    (b / "plan.json").write_text(json.dumps(record))
    first, second = analyse([a, b])
    assert first.finding.warnings == []
    assert f"Not joined with {a}: they differ in versions." in second.finding.warnings
    record["environment"] = {**HERE, "hardware": {"cpu": "another", "cores": 2}}
    (b / "plan.json").write_text(json.dumps(record))
    (joined,) = analyse([a, b])
    assert f"{b} ran on other hardware than {a}." in joined.finding.warnings


@pytest.mark.usefixtures("undrawn")
def test_studies_on_the_same_draws_are_joined(tmp_path: Path) -> None:
    one = invented(tmp_path / "one", easier, draws=6)
    two = invented(tmp_path / "two", easier, draws=6, rename={"vit_c_tiny": "mine"})
    _, sections = report([one, two], tmp_path / "both")
    assert len(sections) == 1
    assert "mine" in sections[0].plan.contenders
    assert {c["contender"] for c in sections[0].finding.values["comparisons"]} >= {
        "vit_c_tiny",
        "mine",
    }
    with pytest.raises(ConfigError, match="--out"):
        report([one, two])


HOSTILE = {
    "vit_c_tiny": "</title><script>alert(1)</script><img src=x onerror=alert(2)>",
    "vit_p_tiny": "=HYPERLINK(\"http://evil\")$x^2$ & \\input{/etc/passwd} % 'q' ]]>",
}


def test_hostile_names_and_notes_inject_nothing(tmp_path: Path) -> None:
    page, _ = report([invented(tmp_path / "s", easier, rename=HOSTILE)])
    tags = Tags(page.read_text()).seen
    active = {"script", "img", "iframe", "object", "embed", "base", "form"}
    assert not {tag for tag, _ in tags} & active
    links = [attributes for tag, attributes in tags if tag == "a"]
    assert links
    assert all(list(a) == ["href"] and str(a["href"]).startswith("#curve-") for a in links)
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    assert "default-src 'none'" in page.read_text()
    rows = list(csv.reader((page.parent / "trials.csv").read_text().splitlines()))
    assert not [c for row in rows for c in row if c[:1] in "=+-@" and c]
    table = (page.parent / "table.tex").read_text()
    assert r"\input" not in table


def test_the_page_asks_for_nothing_from_outside(made: tuple[Path, list[Section]]) -> None:
    page, _ = made
    text = page.read_text()
    urls = re.findall(r"""(?:(?:src|href)=["']?|url\(["']?)([^"')\s>]+)""", text)
    assert urls
    assert all(u.startswith(("#", "data:")) for u in urls), urls


def test_a_trial_is_named_over_its_dot_which_leads_to_its_curve(
    made: tuple[Path, list[Section]],
) -> None:
    page, (section,) = made
    text = page.read_text()
    r = next(r for r in section.results if (r.contender, r.draw) == ("vit_c_tiny", 3))
    settings = f"lr {r.values['optim.lr']:.3g}, weight decay {r.values['optim.weight_decay']:.3g}"
    assert f"vit_c_tiny, draw 3: 33.0 % error; {settings}" in text
    assert re.search(rf"<title>draw 3: -6.3 points, 33.0 % against 39.3 %; {settings}", text)
    tags = Tags(text).seen
    ids = [a["id"] for _, a in tags if str(a.get("id", "")).startswith("curve-")]
    assert len(ids) == len(set(ids)) == 35, "one curve a trial; one diverged"
    links = {str(a["href"]).removeprefix("#") for tag, a in tags if tag == "a"}
    assert links == set(ids)


def test_files_beside_the_page_are_whole_and_lead_nowhere(made: tuple[Path, list[Section]]) -> None:
    page, _ = made
    for file in (page.parent / "figures").glob("*.svg"):
        root = ElementTree.fromstring(file.read_text())
        assert not root.findall(".//{http://www.w3.org/2000/svg}a"), file
    claim = (page.parent / "figures" / "claim_0_adamw_0.svg").read_text()
    assert "draw 3: -6.3 points" in claim


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("names", [{}, HOSTILE])
def test_a_browser_shows_it_without_errors_or_sideways_scrolling(
    tmp_path: Path, width: int, names: dict[str, str]
) -> None:
    """Needs Debian's Chromium: scripts/install_browser.sh."""
    page, _ = report([invented(tmp_path / "s", easier, optims=("adamw", "sgd"), rename=names)])
    drawn = (
        "[...d.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())"
        ".filter(r => r.width > 200 && r.height > 100).length"
    )
    every = "d.querySelectorAll('figure').length"
    sizes = (
        "[...d.querySelectorAll('figure svg')].flatMap(s => [...s.querySelectorAll('text')].map("
        "t => parseFloat(getComputedStyle(t).fontSize) * s.getScreenCTM().a))"
    )
    smallest, largest = f"Math.min(...{sizes})", f"Math.max(...{sizes})"
    found = measured(page, width, tmp_path, figures=drawn, all=every, least=smallest, most=largest)
    assert found["all"] == found["figures"] > 10
    assert 10 <= found["least"] <= found["most"] <= 12, "pixels of text in figures"
    assert found["scroll"] <= found["client"]


@pytest.mark.usefixtures("undrawn")
def test_three_studies_of_one_name_are_joined_under_names_of_their_own(tmp_path: Path) -> None:
    folders = [invented(tmp_path / n / "hparams", easier, draws=6, control=False) for n in "abc"]
    (section,) = analyse(folders)
    assert [c for c in section.plan.contenders if c.startswith("vit_c_tiny")] == [
        "vit_c_tiny",
        "vit_c_tiny (study)",
        "vit_c_tiny (study 2)",
    ]
    assert {len(g.errors) for g in section.finding.draws} == {6}
    report(folders, tmp_path / "out")


def test_the_test_error_is_the_best_draws_own(tmp_path: Path) -> None:
    folder = invented(tmp_path / "s", easier, draws=4, control=False)
    trials = [t for t in StudyFolder(folder).read()[0].trials() if t.contender == "vit_c_tiny"]

    def shown(draw: int) -> str:
        test = {"top1": 60.0, "top1_low": 55.0, "top1_high": 65.0}
        entry = {"trial": trials[draw].id, "draw": draw, **test}
        (folder / "chosen.json").write_text(json.dumps({"vit_c_tiny/adamw": entry}))
        (section,) = analyse([folder])
        table = next(t for t in section.finding.tables if t.title == "Contenders")
        row = next(r for r in table.rows if r[0] == "vit_c_tiny")
        return str(row[table.head.index("test error % of that draw (95 %)")])

    assert shown(0) == "40.00 (35.0-45.0)"
    assert shown(1) == "not read", "it is of another draw than the best"


def test_an_optimizer_named_by_a_path_has_figures_in_files(tmp_path: Path) -> None:
    plan = hparams_plan(["debug"], ["vit_c_tiny", "vit_p_tiny"], ["adamw", "sgd"], draws=6)
    names = {"adamw": "sub/opt.py:MyOpt", "sgd": "sub_opt.py:MyOpt"}
    groups = tuple(dataclasses.replace(g, optim=names[g.optim]) for g in plan.groups)
    ranges = {names[o]: r for o, r in plan.ranges.items()}
    plan = dataclasses.replace(plan, groups=groups, ranges=ranges)
    invent(StudyFolder(tmp_path / "s"), plan, lambda t: easier(t.contender, t.optim, t.draw))
    page, _ = report([tmp_path / "s"])
    assert {p.stem for p in (page.parent / "figures").glob("claim*.svg")} == {
        "claim_0_sub_opt.py_MyOpt_0_0",
        "claim_0_sub_opt.py_MyOpt_1_1",
    }
    assert len(list((page.parent / "figures").glob("edf*.svg"))) == 2


@pytest.mark.usefixtures("undrawn")
def test_an_open_bound_is_not_infinity(tmp_path: Path) -> None:
    page, _ = report([invented(tmp_path / "s", easier, draws=3, control=False)])
    tex = (page.parent / "table.tex").read_text()
    assert "inf" not in tex
    assert "31.1 [--, --]" in tex
    trials = tmp_path / "trials.csv"
    lines = [f"{c},{i},{30 + i}" for c in ("mine", "base") for i in range(3)]
    trials.write_text("\n".join(["model,seed,err", *lines]) + "\n")
    columns = Columns(contender="model", error="err", draw="seed")
    trials_report([trials], tmp_path / "other", columns, classes=10)
    (other,) = (tmp_path / "other").glob("*.html")
    text = other.read_text()
    assert "31.0 (? to ?)" in text
    assert "-inf" not in text
