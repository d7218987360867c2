"""The measures: each plans the trials of a study and reads their results."""

from __future__ import annotations

from vitc.errors import unknown
from vitc.study.measures.base import Measure
from vitc.study.measures.hparams import Hparams
from vitc.study.measures.length import Length
from vitc.study.measures.optimizer import Optimizer
from vitc.study.measures.peak import Peak
from vitc.study.measures.seeds import Seeds
from vitc.study.measures.vary import Vary

MEASURES: dict[str, Measure] = {
    m.name: m for m in (Hparams(), Length(), Optimizer(), Peak(), Seeds(), Vary())
}


def measure_of(name: str) -> Measure:
    """Raises ConfigError: no measure of this name is known."""
    if name not in MEASURES:
        raise unknown("measure", name, list(MEASURES))
    return MEASURES[name]
