"""Figures of the claim: what they show of known numbers, and that a trial can be found in them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.invented import invent
from tests.test_report import dies, easier, invented
from vitc.resolve import load_config
from vitc.study.analysis import analyse
from vitc.study.claim_figures import claim_figures
from vitc.study.contrasts import MOST_CARDS, MOST_WORDS, cards, sentence
from vitc.study.design import Plan
from vitc.study.figures import claim_and_other_figures
from vitc.study.measures.hparams import hparams_plan
from vitc.study.reporting import report
from vitc.study.results import Section
from vitc.study.studies import StudyResult
from vitc.study.study_folder import StudyFolder
from vitc.views.figures import Sheet, _log_axis, draw
from vitc.views.model import GREY, Chart, Forest


def of_twelve(optims: tuple[str, ...]) -> Plan:
    """A plan with twelve contenders, and a control."""
    plan = hparams_plan(["debug"], ["vit_c_tiny", "vit_p_tiny"], optims, draws=12, control=True)
    more = [
        dataclasses.replace(g, contender=f"a stem of mine, number {i}").with_config(
            load_config(g.config, **{"optim.clip_norm": 1.0 + i})
        )
        for i in range(10)
        for g in plan.groups
        if g.contender == "vit_c_tiny"
    ]
    return dataclasses.replace(plan, groups=(*plan.groups, *more))


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Section:
    """A third of the contenders better, a third worse, a third alike, under two optimizers."""
    path = tmp_path_factory.mktemp("twelve") / "s"
    plan = of_twelve(("adamw", "sgd"))
    order = {c: i for i, c in enumerate(plan.contenders)}

    def error(trial: object) -> float:
        draw, contender = trial.draw, trial.contender  # type: ignore[attr-defined]
        gap = (-5, 0, 5)[order[contender] % 3] if contender.startswith("a stem") else 0
        return 40 + draw + gap + 0.1 * ((draw * (order[contender] + 1)) % 7)

    invent(StudyFolder(path), plan, error)
    return analyse([path])[0]


def charts_of(section: Section) -> dict[str, Chart | Forest]:
    first, later = claim_figures(section, 0, {})
    return {c.name: c for figures in (*first, *later) for c in figures.charts}


def test_the_forest_has_both_endpoints_of_every_comparison_and_of_the_control(
    tmp_path: Path,
) -> None:
    (section,) = analyse([invented(tmp_path / "s", dies, draws=20)])
    forest = charts_of(section)["forest_0"]
    assert isinstance(forest, Forest)
    rival, control = forest.rows
    assert (rival.label, rival.verdict, rival.failed) == (
        "vit_c_tiny",
        "no winner",
        [(8, 20), (0, 20)],
    )
    assert rival.estimate == pytest.approx(-6.1)
    assert (rival.low, rival.high) == section.finding.contrasts[0].found.interval
    assert len(rival.dots) == 12
    assert (control.verdict, control.look) == ("pass", GREY)
    assert "of 20" in forest.failures


def test_a_panel_has_a_dot_for_each_draw_both_intervals_and_the_failures(tmp_path: Path) -> None:
    (section,) = analyse([invented(tmp_path / "s", dies, draws=20)])
    panel = charts_of(section)["claim_0_adamw_0"]
    assert isinstance(panel, Chart)
    assert "no winner" in panel.title
    assert panel.log_x
    of = {(line.form, line.look): line for line in panel.lines}
    dots, gone = of["scatter", 0], of["rug", 0]
    assert len(dots.x) == len(dots.titles) == 12
    assert min(dots.y) == pytest.approx(-6.2)
    assert "8 of 20" in gone.label
    assert len(of["scatter", GREY].x) == 20
    assert of["level", 0].y == [pytest.approx(-6.1)]
    assert of["level", GREY].y == [0.0]


def test_of_one_comparison_an_optimizer_each_is_its_sentence(twelve: Section) -> None:
    f = twelve.finding
    optims = twelve.plan.optims
    one = [next(c for c in f.contrasts if c.optim == o and not c.is_control) for o in optims]
    shown = cards(one, ["a sentence"] * (MOST_CARDS + 1), twelve.plan)
    assert [c.text for c in shown] == [sentence(c, twelve.plan) for c in one]
    assert all(f"Under {o}, " in c.text for o, c in zip(optims, shown, strict=True))


def test_many_comparisons_are_summed_up_and_drawn_small_below(twelve: Section) -> None:
    f = twelve.finding
    shown = cards(f.contrasts, f.verdict, twelve.plan)
    assert [c.label for c in shown] == [
        "error against vit_p_tiny · adamw",
        "error against vit_p_tiny · sgd",
    ]
    assert all(len(c.text.split()) <= MOST_WORDS for c in shown)
    assert all("lower" in c.headline and "higher" in c.headline for c in shown)
    first, later = claim_figures(twelve, 0, {})
    forests = [c for figures in first for c in figures.charts]
    assert [len(c.rows) for c in forests if isinstance(c, Forest)] == [12, 12]
    panels = [c for figures in later for c in figures.charts]
    assert len(panels) == 22
    assert not any(c.brief for c in panels), "a page of a repository has the forests alone"


def test_charts_of_many_contenders_keep_to_what_can_be_read(twelve: Section) -> None:
    _, others = claim_and_other_figures(twelve, 0)
    charts = {c.name: c for figures in others for c in figures.charts}
    tuning, scatter = charts["tuning_0_adamw"], charts["scatter_0_adamw_lr"]
    assert isinstance(tuning, Chart)
    assert isinstance(scatter, Chart)
    ends = [line.y[-1] for line in tuning.lines]
    assert ends == sorted(ends, reverse=True), "the legend in the order of the curves' ends"
    assert {line.form for line in tuning.lines} == {"curve"}, "no bands"
    shown = {line.label for line in scatter.lines if line.label}
    assert len(shown) <= 5
    assert "vit_p_tiny" in shown


def test_bands_are_of_two_contenders_with_many_draws_and_of_no_control(tmp_path: Path) -> None:
    for draws, bands in ((31, 0), (32, 2)):
        (section,) = analyse([invented(tmp_path / str(draws), easier, draws=draws)])
        _, others = claim_and_other_figures(section, 0)
        charts = {c.name: c for figures in others for c in figures.charts}
        tuning = charts["tuning_0_adamw"]
        assert isinstance(tuning, Chart)
        assert sum(line.form == "band" for line in tuning.lines) == bands


def test_a_card_has_a_sentence_of_forty_words_and_its_claim(tmp_path: Path) -> None:
    (section,) = analyse([invented(tmp_path / "s", easier, optims=("adamw", "sgd"))])
    shown = cards(section.finding.contrasts, section.finding.verdict, section.plan)
    assert [c.headline for c in shown] == ["Lower by 6.0 points"] * 2
    assert [c.text for c in shown] == section.finding.verdict


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_few_draws_without_bounds_or_differences_are_drawn(tmp_path: Path, draws: int) -> None:
    (section,) = analyse([invented(tmp_path / "s", easier, draws=draws)])
    charts = list(charts_of(section).values())
    assert bool(charts) == (draws > 1)
    assert not charts or draw(charts)


@pytest.mark.slow
def test_where_nothing_learns_there_is_still_a_page(tmp_path: Path) -> None:
    page, _ = report([invented(tmp_path / "s", lambda c, o, d: None, draws=4)])
    assert "<svg" in page.read_text()


def test_a_notebook_shows_it_at_its_size_with_twice_the_pixels(tmp_path: Path) -> None:
    (section,) = analyse([invented(tmp_path / "s", dies, draws=6)])
    made = StudyResult(tmp_path / "s", section, tmp_path / "report.html")
    figure = made.figure()
    assert isinstance(figure, Sheet)
    png, size = figure._repr_png_()
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (2 * size["width"], 2 * size["height"])
    assert size["width"] == 2 * 340, "the differences and the forest"
    assert len(made.figure("edf").axes) == 1


def test_figures_are_as_wide_as_a_phone_whatever_the_names(tmp_path: Path) -> None:
    names = {"vit_c_tiny": "a contender with a name of " + "many " * 20 + "words"}
    (section,) = analyse([invented(tmp_path / "s", easier, rename=names)])
    for chart in charts_of(section).values():
        figure = draw([chart])
        assert figure.get_size_inches()[0] * 96 == pytest.approx(340)
        figure.canvas.draw()
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02, chart.name
        assert box.x1 * 96 <= 342, chart.name
    assert draw([chart] * 4).get_size_inches()[0] * 96 == pytest.approx(2 * 340), "two rows of two"


@pytest.mark.parametrize(
    ("low", "high", "most"),
    [(5.5e-4, 9e-4, 3), (3.0, 4.0, 3), (2.1e-3, 9.9e-3, 4), (1e-4, 1e-2, 8)],
)
def test_the_labels_of_a_log_axis_are_few_enough_to_be_read(
    low: float, high: float, most: int
) -> None:
    axes = Figure().subplots()
    axes.set_xlim(low, high)
    _log_axis(axes)
    shown = [x for x in axes.get_xticks() if low <= x <= high]
    assert 2 <= len(shown) <= most
