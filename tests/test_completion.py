"""`vitc --print-completion`: a script that completes verbs, options, settings and files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vitc.cli.main import GROUPS, VERBS, main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab")
    assert main(["--print-completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_names_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for verb in (*VERBS, *GROUPS, *GROUPS["study"](), "--train.epochs", "--print-completion"):
        assert verb in text, verb
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("ex", "export"),
        ("study hp", "hparams"),
        ("data pa", "pack"),
        ("train photos --optim.layer", "--optim.layer_decay"),
        ("export runs/photos --min", "--min-agreement"),
        ("evaluate runs/photos --split te", "test"),
        ("export ./RE", "./README.md"),
    ],
)
def test_bash_completes(
    words: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").touch()
    line = f"COMP_WORDS=(vitc {words}); COMP_CWORD={len(words.split())}; _shtab_vitc"
    code = f'{script("bash", capsys)}\n{line}; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == found, done.stderr


@pytest.mark.parametrize("words", [[], ["fish"], ["bash", "zsh"]])
def test_other_shells_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", *words]) == 2
    assert "needs bash or zsh" in capsys.readouterr().err
