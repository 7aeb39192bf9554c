"""The README's commands exist and name files that exist; its first example runs, with a small model and less data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from visionsft.cli import app
from visionsft.preparation.sampledata import generate

ROOT = Path(__file__).parents[1]
COMMANDS = sorted(
    set(re.findall(r"visionsft ((?:config )?[a-z-]+)(?= |`|\n)", (ROOT / "README.md").read_text()))
)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    assert "Usage" in run(*command.split(), "--help")


def test_named_files_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(
        re.findall(
            r"\b(?:configs|notebooks|benchmarks|backbones|visionsft)/[\w/.]+\.(?:yaml|ipynb|py)\b", text
        )
    )
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_first_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generate("demo/data", scenes=4, size=128)
    small = ["backbone={name: test_efficientnet, weights: none}", "trainer.epochs=1", "data.workers=0"]
    small += ["data.chips_per_epoch=8", "data.chip=64"]
    run("fit", ROOT / "configs" / "demo.yaml", *(word for each in small for word in ("--set", each)))
    assert "mean IoU" in run("evaluate", "demo/runs/demo")
    run("predict", "demo/runs/demo", "demo/data/test/images", "--out", "demo/predictions", "--overlay")
    assert list(Path("demo/predictions").glob("*.tif"))
    assert list(Path("demo/predictions").glob("*_overlay.jpg"))
