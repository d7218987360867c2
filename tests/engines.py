"""An engine that runs a study's trials in the process of the test, where torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitc.study.launch import LocalEngine
from vitc.study.study_folder import StudyFolder
from vitc.study.work import run_trial, trials_of


class Here(LocalEngine):
    """Of any name."""

    def __init__(self, name: str = "local") -> None:
        super().__init__(workers=1)
        self.name = name

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        for trial in trials_of(study, ids):
            run_trial(study, trial, self.name)
