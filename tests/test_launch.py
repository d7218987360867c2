"""`vitc.study.launch*`: the engines' flags, what they submit again, and equal results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.engines import Here
from tests.test_work import LONGER, nothing_twice, plan, results, study, until
from vitc.cli.main import main
from vitc.cli.work import FLAGS
from vitc.errors import ConfigError, InterruptedRun, RunError
from vitc.files import write_json
from vitc.machine import install_line
from vitc.runs.folder import CLAIM, TRIES
from vitc.study import launch_slurm as slurm_module
from vitc.study import load_runs
from vitc.study.analysis import analyse
from vitc.study.design import Trial
from vitc.study.launch import ENGINES, LocalEngine, run_all
from vitc.study.launch_ray import RayEngine
from vitc.study.launch_slurm import Slice, SlurmEngine
from vitc.study.reporting import facts
from vitc.study.runner import conduct
from vitc.study.standing import standing
from vitc.study.study_folder import StudyFolder
from vitc.study.work import Pool, Span, read_tries, run_trial


def always() -> bool:
    return True


def note(folder: StudyFolder, trial: str, **entry: Any) -> None:
    """Leave behind a try of a trial."""
    out = folder.trials / trial
    out.mkdir(parents=True, exist_ok=True)
    whole = {"engine": "slurm", "host": "n1", "process": 1, "checkpoint": "", **entry}
    write_json(out / TRIES, {"schema": 1, "tries": [*read_tries(out), whole]})


def finish(folder: StudyFolder, trial: str, status: str = "done") -> None:
    """Leave behind what a trial that ended leaves."""
    note(folder, trial, ended=status)
    values = {"status": status, "train_seconds": 1.0}
    write_json(folder.trials / trial / "summary.json", values)


# -- flags -----------------------------------------------------------------------------------------

QUICKLY = "--draws 2 --train.precision fp32 --train.epochs 1"
STUDY = ["study", "hparams", "debug", *QUICKLY.split()]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--engine ray --workers 2", "--workers has no effect with --engine ray"),
        ("--ray-address auto", "--ray-address has no effect with --engine local"),
        ("--engine slurm --ray-address auto", "--ray-address has no effect"),
        ("--engine ray --partition gpu", "--partition has no effect"),
        ("--engine ray --hours 2", "it is for: slurm"),
        ("--gpus-per-trial 1", "it is for: ray, slurm"),
        ("--engine ray --gpus-per-trial 1.5", "a share of one GPU or an integer"),
        ("--engine ray --gpus-per-trial -1", "must not be negative"),
        ("--engine ray --gpus-per-trial nan", "must not be negative"),
        ("--engine slurm --gpus-per-trial 0.5", "whole GPUs"),
        ("--engine slurm --gpus-per-trial 2 --pack 2", "one GPU or none"),
        ("--engine slurm --nodes-per-trial 2 --gpus-per-trial 3", "a multiple"),
        ("--engine slurm --hours 0.01", "too short"),
        ("--engine slurm --hours -1", "above 0"),
        ("--engine slurm --slurm-cluster pbs", "invalid choice"),
        ("--engine ray --ray-address ray://x:1", "neither auto nor HOST:PORT"),
        ("--engine ray --gpus-per-trial 1 --train.device cpu", "contradicts"),
        ("--engine kubernetes", "invalid choice"),
    ],
)
def test_a_flag_without_effect_or_sense_is_one_message(
    words: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, *words.split()]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ENGINES)
def test_the_fields_of_an_engine_are_its_flags(name: str) -> None:
    fields = {f.name for f in dataclasses.fields(ENGINES[name]) if f.init}
    assert fields == {flag for flag, about in FLAGS.items() if name in about.engines}


def test_quick_on_a_cluster_needs_draws_as_its_budget_is_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", "quick", "--engine", "ray"]) == 2
    assert "--draws" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_without_its_package_an_engine_shows_the_line_that_installs_it(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit" if engine == "slurm" else "ray", None)
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "--engine", engine]) == 2
    assert install_line(engine) in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["ray", "slurm"])
@pytest.mark.parametrize(
    ("gpus", "asked", "device"),
    [
        (None, None, "cpu"),
        (None, "cuda", "cuda"),
        (2, None, "cuda"),
        (4, "cuda", "cuda"),
        (0, "auto", "cpu"),
    ],
)
def test_the_device_of_trials_elsewhere_follows_from_their_gpus(
    engine: str, gpus: float | None, asked: str | None, device: str
) -> None:
    assert ENGINES[engine](gpus_per_trial=gpus).device(asked) == device  # type: ignore[call-arg]


def test_trials_for_a_gpu_are_planned_where_none_is(tmp_path: Path) -> None:
    config = next(plan(1, **{"train.device": "cuda", "train.precision": "bf16"}).trials()).config
    assert (config.train.device, config.train.threads) == ("cuda", None)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU here")
def test_what_can_only_be_measured_on_the_gpu_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--train\.precision"):
        plan(1, **{"train.device": "cuda", "train.precision": "auto"})
    with pytest.raises(ConfigError, match="cuda"):
        LocalEngine(1).prepare(StudyFolder(tmp_path), "cuda", False)


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_a_study_for_the_cpu_gets_no_gpus_later(engine: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="are for cpu, which contradicts --gpus-per-trial 2"):
        ENGINES[engine](gpus_per_trial=2).prepare(StudyFolder(tmp_path), "cpu", False)  # type: ignore[call-arg]


# -- any engine ------------------------------------------------------------------------------------


class Fake(LocalEngine):
    """An engine that launches as `launch(folder, ids, how often before)` has it."""

    def __init__(self, launch: Callable[[StudyFolder, Sequence[str], int], None]) -> None:
        super().__init__(workers=1)
        self.launch, self.launched = launch, list[Sequence[str]]()

    def run(self, study: StudyFolder, ids: Sequence[str], going: Callable[[], bool]) -> None:
        self.launched.append(list(ids))
        self.launch(study, ids, len(self.launched) - 1)


def test_what_is_unfinished_is_launched_again_and_nothing_else(tmp_path: Path) -> None:
    folder, trials = study(tmp_path, 3)
    ids = [t.id for t in trials]
    finish(folder, ids[0], "diverged")
    engine = Fake(lambda folder, ids, n: (note(folder, ids[-1]), finish(folder, ids[0]))[0])
    run_all(folder, ids, engine, always)
    assert engine.launched == [ids[1:], ids[2:]]


def test_an_engine_that_changes_nothing_is_not_launched_for_ever(tmp_path: Path) -> None:
    folder, (trial,) = study(tmp_path, 1)
    engine = Fake(lambda folder, ids, n: None)
    with pytest.raises(RunError, match=trial.id):
        run_all(folder, [trial.id], engine, always)
    assert len(engine.launched) == 2


@pytest.mark.slow
def test_a_trial_that_another_machine_runs_is_waited_for_or_left_to_it(tmp_path: Path) -> None:
    folder, (trial,) = study(tmp_path, 1)
    folder.trial(trial).mkdir(parents=True)
    code = (
        "import sys, time; from pathlib import Path\n"
        "from vitc.files import FolderLock, write_json\n"
        "out = Path(sys.argv[1])\n"
        f"with FolderLock(out, {CLAIM!r}):\n"
        "    print(flush=True); time.sleep(2); write_json(out / 'summary.json', {'status': 'done'})"
    )
    command = [sys.executable, "-c", code, str(folder.trial(trial))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        engine = Fake(lambda *_: None)
        run_all(folder, [trial.id], engine, always, wait=False)
        assert not (folder.trial(trial) / "summary.json").exists()
        run_all(folder, [trial.id], engine, always)
    assert (folder.trial(trial) / "summary.json").exists()
    assert engine.launched == []


def test_a_study_moves_between_engines_and_the_report_lists_them(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "s")
    conduct(folder, plan(1), engine=Here("local"), quiet=True)
    now = conduct(folder, plan(2), engine=Here("ray"), quiet=True)
    assert (now.ended, now.total) == (2, 2)
    _, record = folder.read()
    assert "continued with engine ray" in [entry["what"] for entry in record["history"]]
    assert sorted(place for run in now.runs.values() for place, _ in run.places) == ["local", "ray"]
    (section,) = analyse([folder.path])
    (places,) = [text for name, text in facts(section, "").rows if name == "trials ran"]
    host = socket.gethostname()
    assert f"local on {host}: 1 trial" in places
    assert f"ray on {host}: 1 trial" in places


def test_machines_with_other_versions_are_noted_where_they_are_allowed(tmp_path: Path) -> None:
    folder, (trial,) = study(tmp_path, 1)

    def elsewhere(folder: StudyFolder, ids: Sequence[str], launched: int) -> None:
        note(folder, ids[0], host="node7", versions={"torch": "1.0", "vitc": "0"}, ended="done")
        run_trial(folder, trial, "local")

    conduct(folder, plan(1), engine=Fake(elsewhere), quiet=True, allow_mixed=True)
    (entry,) = folder.read()[1]["history"]
    assert "node7" in entry["what"]


# -- SLURM -----------------------------------------------------------------------------------------


def test_sbatch_is_asked_for_what_the_flags_give() -> None:
    options = {"partition": "gpu", "account": "a1", "qos": "low", "constraint": "a100"}
    size: dict[str, Any] = {"gpus_per_trial": 1, "cpus_per_trial": 6, "pack": 4}
    asked = SlurmEngine(**size, **options, max_jobs=7, hours=1.5).parameters(Path("s"))
    assert options.items() <= asked.items()
    assert (asked["time"], asked["array_parallelism"], asked["exclusive"]) == (90, 7, True)
    assert (asked["gpus_per_node"], asked["cpus_per_task"], asked["nodes"]) == (4, 24, 1)
    assert asked["srun_args"] == ["--cpus-per-task=24"]
    spread = SlurmEngine(gpus_per_trial=8, nodes_per_trial=2).parameters(Path("s"))
    assert (spread["nodes"], spread["gpus_per_node"], spread["ntasks_per_node"]) == (2, 4, 1)


def test_a_dry_run_counts_the_trials_prints_the_job_script_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*STUDY, "--dry-run"]) == 0
    assert "2 of 2 trials would run with engine local" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    needs("submitit", "slurm")
    words = "--engine slurm --gpus-per-trial 1 --partition gpu --pack 2 --qos low --max-jobs 3"
    assert main([*STUDY, "--draws", "20", *words.split(), "--hours", "12", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "20 of 20 trials" in out
    asked = "array=0-9%3 partition=gpu qos=low time=720 exclusive gpus-per-node=2 requeue"
    asked += " signal=USR2@90"
    assert {f"#SBATCH --{option}" for option in asked.split()} <= {*out.splitlines()}
    assert re.search(r"^srun .* -m submitit\.core\._submit ", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


class Cluster:
    """A SLURM in memory, as submitit's executor: a job ends at once, as `ends(slice)` has it: with
    its result, or None where it was killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.submitted: list[Slice] = []
        self.arrays: list[int] = []
        self.commands: list[tuple[str, ...]] = []
        self.ends: Callable[[Slice], list[str | None] | None] = lambda s: []
        monkeypatch.setattr(SlurmEngine, "_executor", lambda engine, study: self)
        monkeypatch.setattr(slurm_module, "_slurm", self.command)
        monkeypatch.setattr(slurm_module, "WATCH_SECONDS", 0.0)
        monkeypatch.setattr(slurm_module, "GONE_SECONDS", 0.05)
        clock = SimpleNamespace(sleep=lambda s: time.sleep(s / 50), monotonic=time.monotonic)
        monkeypatch.setattr(slurm_module, "time", clock)
        error = SimpleNamespace(UncompletedJobError=RuntimeError)
        fake: Any = ModuleType("submitit")
        fake.core = SimpleNamespace(utils=error)
        monkeypatch.setitem(sys.modules, "submitit", fake)

    def command(self, *words: str) -> bool:
        self.commands.append(words)
        return words[0] != "sacct"  # there is no accounting

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        before = len(self.submitted)
        yield
        self.arrays.append(len(self.submitted) - before)

    def submit(self, part: Slice) -> Any:
        self.submitted.append(part)
        result = self.ends(part)
        paths = SimpleNamespace(result_pickle=SimpleNamespace(exists=lambda: result is not None))
        number = f"7_{len(self.submitted)}"
        return SimpleNamespace(job_id=number, paths=paths, results=lambda: result)


def finished(part: Slice) -> list[str | None]:
    for trial in part.pool.ids:
        finish(part.pool.study, trial)
    return [None]


def run_slurm(folder: StudyFolder, trials: Sequence[Trial], **flags: Any) -> None:
    engine = SlurmEngine(**flags)
    engine.prepare(folder, "cpu", False)
    run_all(folder, [t.id for t in trials], engine, always)


def test_all_trials_are_one_throttled_array_of_packs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, (folder, trials) = Cluster(monkeypatch), study(tmp_path, 5)
    cluster.ends = finished
    run_slurm(folder, trials, pack=2, max_jobs=1)
    assert sorted(i for s in cluster.submitted for i in s.pool.ids) == sorted(t.id for t in trials)
    assert [len(s.pool.ids) for s in cluster.submitted] == [2, 2, 1]
    assert cluster.arrays == [3]
    assert [c[0] for c in cluster.commands] == ["scancel", "sacct"]  # what still waits is replaced
    assert "--state=PENDING" in cluster.commands[0]


def test_a_killed_task_is_submitted_again_without_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a claim of a vanished process leaves is enough to know of it."""
    cluster, (folder, trials) = Cluster(monkeypatch), study(tmp_path, 2)

    def ends(part: Slice) -> list[str | None] | None:
        if len(cluster.submitted) == 1:
            note(folder, part.pool.ids[0])
            return None
        return finished(part)

    cluster.ends = ends
    run_slurm(folder, trials)
    assert [s.pool.ids for s in cluster.submitted] == [
        [trials[0].id],
        [trials[1].id],
        [trials[0].id],
    ]


def test_a_machine_that_cannot_run_trials_ends_the_study_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, (folder, trials) = Cluster(monkeypatch), study(tmp_path, 1)
    cluster.ends = lambda part: ["node7 does not see the study"]
    with pytest.raises(ConfigError, match="node7"):
        run_slurm(folder, trials)


def test_a_stop_ends_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, (folder, trials) = Cluster(monkeypatch), study(tmp_path, 2)
    cluster.ends = lambda part: None
    asked = iter([True, True, True])
    engine = SlurmEngine()
    engine.prepare(folder, "cpu", False)
    run_all(folder, [t.id for t in trials], engine, lambda: next(asked, False))
    assert cluster.commands[-1] == ("scancel", "7")


class Refusals:
    """An sbatch that refuses `times` times, as submitit hands it on."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, why: str, times: int
    ) -> None:
        self.times, self.asked, self.why, self.take = times, 0, why, cluster.submit
        monkeypatch.setattr(cluster, "submit", self)
        monkeypatch.setattr(slurm_module, "PAUSES", (0.1, 0.1, 0.1))

    def __call__(self, part: Slice) -> Any:
        self.asked += 1
        if self.asked > self.times:
            return self.take(part)
        refused = subprocess.CalledProcessError(1, ["sbatch"], stderr=self.why)
        raise RuntimeError(self.why) from refused


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("why", "times", "asked"),
    [
        ("sbatch: error: invalid partition specified: gpuu", 99, 1),
        (f"{FAILED}Invalid partition name specified", 99, 1),
        (f"{FAILED}Invalid account or account/partition combination specified", 99, 1),
        (f"{FAILED}Invalid qos specification", 99, 1),
        (f"{FAILED}Requested node configuration is not available", 99, 1),
        (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", 99, 1),
        (f"{FAILED}Protocol authentication error", 99, 4),
        (f"{FAILED}Socket timed out on send/recv operation", 3, 4),
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1, 2),
    ],
)
def test_sbatch_is_tried_again_unless_it_refuses_for_good_or_for_too_long(
    why: str, times: int, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, (folder, trials) = Cluster(monkeypatch), study(tmp_path, 3)
    cluster.ends = finished
    sbatch = Refusals(monkeypatch, cluster, why, times)
    if times < asked:
        run_slurm(folder, trials, pack=3)
    else:
        with pytest.raises(RunError, match=re.escape(why)) as caught:
            run_slurm(folder, trials, pack=3)
        assert "--partition" in str(caught.value.hint)
    assert sbatch.asked == asked


def slice_of(folder: Path, span: Span | None = None) -> Slice:
    """A task of no trials."""
    pool = Pool(StudyFolder(folder), [], 1, "slurm", span=span or Span())
    return Slice(pool, share_gpus=False, save_seconds=1.0, trusted="{}", allow_mixed=False)


def test_a_task_that_does_not_see_the_study_returns_why(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        why = slice_of(tmp_path / "none")()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "does not see" in str(why)


def test_two_trials_of_an_array_meet_at_two_ports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, fake = slice_of(tmp_path, Span(2, 2)), ModuleType("submitit")
    monkeypatch.setitem(sys.modules, "submitit", fake)
    spans = []
    for number, node in (("901", 0), ("901", 1), ("902", 0)):
        here = SimpleNamespace(raw_job_id=number, node=node, hostnames=["a", "b"])
        monkeypatch.setattr(fake, "JobEnvironment", lambda here=here: here, raising=False)
        spans.append(part.span_here())
    assert spans[0].port == spans[1].port != spans[2].port
    assert [(s.rank, s.address) for s in spans] == [(0, "a"), (1, "a"), (0, "a")]


# -- Ray -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "cpus", "node", "fit"),
    [
        (0, 1, (4, 0), 4),
        (0.25, 1, (64, 2), 8),
        (0.3, 1, (64, 2), 6),
        (4, 2, (64, 8), 2),
        (1, 8, (16, 8), 2),
        (2, 1, (64, 1), 0),
        (0, 8, (4, 0), 0),
    ],
)
def test_what_fits_on_a_node_is_known_beforehand(
    gpus: float, cpus: int, node: tuple[int, int], fit: int
) -> None:
    engine = RayEngine(gpus_per_trial=gpus, cpus_per_trial=cpus)
    engine.gpus = gpus
    nodes = [{"CPU": float(node[0]), "GPU": float(node[1])}]
    if fit:
        assert engine._room(nodes) == fit
    else:
        with pytest.raises(ConfigError, match="No node is large enough"):
            engine._room(nodes)


# -- the real ones ---------------------------------------------------------------------------------


def needs(name: str, extra: str) -> Any:
    """The package, or a skip that names what was not tested."""
    return pytest.importorskip(name, reason=f"NOT TESTED: {name} is not installed (vitc[{extra}])")


def resumed(folder: StudyFolder) -> int:
    """How many trials were resumed."""
    return sum("  continued" in p.read_text() for p in folder.path.glob("trials/*/events.log"))


def once(condition: Callable[[], Any], act: Callable[[], None]) -> threading.Thread:
    """Wait in a thread for a condition, then act."""

    def watch() -> None:
        until(condition, 300)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the study that the real engines are compared on, as this machine has them."""
    folder = StudyFolder(tmp_path_factory.mktemp("local") / "s")
    conduct(folder, plan(4, **LONGER), engine=LocalEngine(2), keep="all", quiet=True)
    return results(folder.path)


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that an engine starts find this very vitc."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_ray_cluster_that_loses_a_node_comes_to_the_same_results(
    tmp_path: Path, local: dict[str, Any]
) -> None:
    needs("ray", "ray")
    from ray.cluster_utils import Cluster as RayCluster

    size = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = RayCluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    node = cluster.add_node(**size)
    folder = StudyFolder(tmp_path / "s")
    killer = once(
        lambda: len(list(folder.trials.glob("*/checkpoints/latest"))) == 2,
        lambda: cluster.remove_node(node, allow_graceful=False),
    )
    try:
        engine = RayEngine(ray_address=cluster.address)
        now = conduct(folder, plan(4, **LONGER), engine=engine, keep="all", quiet=True)
    finally:
        killer.join()
        cluster.shutdown()
    assert (now.ended, now.total) == (4, 4)
    assert resumed(folder) == 1
    nothing_twice(folder.path)
    assert results(folder.path) == local


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_local_ray_cluster_is_stopped_and_the_study_resumed_on_this_machine(
    tmp_path: Path, local: dict[str, Any]
) -> None:
    needs("ray", "ray")
    folder = StudyFolder(tmp_path / "s")
    stopper = once(
        lambda: list(folder.trials.glob("*/checkpoints/latest")),
        lambda: os.kill(os.getpid(), signal.SIGTERM),
    )
    with pytest.raises(InterruptedRun):
        conduct(folder, plan(4, **LONGER), engine=RayEngine(), keep="all", quiet=True)
    stopper.join()
    stopped = standing(folder, plan(4, **LONGER)).counts
    assert stopped["interrupted"] >= 1
    assert stopped["done"] < 4
    conduct(folder, plan(4, **LONGER), engine=LocalEngine(2), keep="all", quiet=True)
    nothing_twice(folder.path)
    assert results(folder.path) == local
    assert {p for r in load_runs(folder.path) for p, _ in r.places} == {"ray", "local"}


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_submitit_jobs_preempted_and_killed_come_to_the_same_results(
    tmp_path: Path, local: dict[str, Any]
) -> None:
    """Two trials side by side; the job has to save and is requeued, then killed."""
    needs("submitit", "slurm")
    folder = StudyFolder(tmp_path / "s")
    engine = SlurmEngine(slurm_cluster="local", pack=2, max_jobs=1, hours=1)

    def disturb() -> None:
        signal_jobs(folder.path / "slurm", signal.SIGUSR2)
        until(lambda: resumed(folder) >= 2, 300)
        signal_jobs(folder.path / "slurm", signal.SIGKILL)

    disturber = once(lambda: len(list(folder.trials.glob("*/checkpoints/latest"))) == 2, disturb)
    now = conduct(folder, plan(4, **LONGER), engine=engine, keep="all", quiet=True)
    disturber.join()
    assert (now.ended, now.total) == (4, 4)
    logs = "".join(p.read_text() for p in folder.path.glob("slurm/*_log.*"))
    assert "Requeued job" in logs
    assert sorted(len(read_tries(t)) for t in folder.trials.iterdir()) == [1, 1, 3, 3]
    nothing_twice(folder.path)
    assert results(folder.path) == local


def signal_jobs(folder: Path, number: int) -> None:
    """Signal the jobs that submitit runs in this folder, as their command lines name it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and str(folder).encode() in words:
                os.kill(int(process.name), number)


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A SLURM of one node, this machine, on the loopback; skips loudly where it cannot be."""
    missing = [w for w in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(w) is None]
    if missing or os.getuid() != 0:
        pytest.skip(
            "NOT TESTED: a real SLURM needs root and Debian's slurm-wlm and munge "
            f"(missing: {', '.join(missing) or 'root'})"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    conf.write_text(SLURM_CONF.format(host=host, folder=folder, ports=ports))
    monkeypatch.setenv("SLURM_CONF", str(conf))
    munge = [f"--{what}={folder / f'munge.{what}'}" for what in ("socket", "seed-file", "log-file")]
    keys = [f"--key-file={key}", f"--pid-file={folder}/munge.pid"]
    commands = [
        ["munged", "--force", "--foreground", *keys, *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf)],
    ]
    daemons = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "wb") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(2)
        until(lambda: "idle" in shell("sinfo", "-h", "-o", "%T"), 30)
        yield folder
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def shell(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_real_slurm_preempts_a_job_and_the_results_are_the_same(
    tmp_path: Path, slurm: Path, local: dict[str, Any]
) -> None:
    needs("submitit", "slurm")
    folder = StudyFolder(tmp_path / "s")

    def preempt() -> None:
        job = shell("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").split()[0]
        shell("scancel", "--signal=USR2", job)
        until(lambda: job in shell("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i"), 60)
        shell("scontrol", "update", f"job={job}", "StartTime=now")  # else SLURM waits two minutes

    preemptor = once(lambda: list(folder.trials.glob("*/checkpoints/latest")), preempt)
    engine = SlurmEngine(pack=2, max_jobs=1, hours=1)
    now = conduct(folder, plan(4, **LONGER), engine=engine, keep="all", quiet=True)
    preemptor.join()
    assert (now.ended, now.total) == (4, 4)
    assert resumed(folder) == 2
    nothing_twice(folder.path)
    assert results(folder.path) == local


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
def test_a_real_slurm_outlives_the_study_that_submitted_and_runs_nothing_twice(
    tmp_path: Path, slurm: Path, local: dict[str, Any]
) -> None:
    """The conductor and, later, a job are killed; the same command finishes the study."""
    needs("submitit", "slurm")
    folder, _ = study(tmp_path, 4, **LONGER)
    words = ["--engine", "slurm", "--max-jobs", "2", "--hours", "1"]
    code = "import sys; from vitc.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "study", "work", str(folder.path), *words]
    running = "*/checkpoints/latest"
    with subprocess.Popen(command, start_new_session=True) as conductor:
        until(lambda: len(list(folder.trials.glob(running))) >= 1, 240)
        os.killpg(conductor.pid, signal.SIGKILL)
    killer = once(
        lambda: len(list(folder.trials.glob(running))) >= 2,
        lambda: signal_jobs(folder.path / "slurm", signal.SIGKILL),
    )
    now = conduct(folder, plan(4, **LONGER), engine=SlurmEngine(max_jobs=2), quiet=True)
    killer.join()
    assert (now.ended, now.total) == (4, 4)
    until(lambda: not shell("squeue", "-h").strip(), 120)
    nothing_twice(folder.path)
    assert results(folder.path) == local
