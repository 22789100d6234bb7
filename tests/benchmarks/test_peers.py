"""The peers' tables add up; running them takes minutes and is `make bench`'s work."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks import corpus, peers, run
from benchmarks.peers import OURS, REFERENCE, SCRIPTS, THEIRS, Result
from benchmarks.reporting import ROOT, Usage
from pipeline.config import from_dict


def test_each_peer_has_its_script_and_each_job_of_ours_a_valid_config() -> None:
    assert {peer.script for peer in THEIRS} == {path.name for path in SCRIPTS.glob("*.py")}
    for path in SCRIPTS.glob("*.py"):
        compile(path.read_text(), path.name, "exec")
    for peer in OURS:
        assert peer.job is not None
        config = from_dict(peer.job.config(ROOT, ROOT / "table"))
        assert config.segments.policy == ("window" if peer.whole else "truncate")
    assert sum(peer.whole for peer in OURS) == 1


def test_rows_and_ratios_add_up() -> None:
    vectors = np.eye(4)[:2]
    tokens = {"short": 200, "long": 1004}
    theirs = Result(REFERENCE, [Usage(6, 8, 0)], [Usage(26, 50, 0, ready=4)], vectors, tokens)
    ours = Result(OURS[0], [Usage(4, 7, 0)], [Usage(9, 16, 0)], vectors, tokens)
    whole = Result(OURS[-1], [Usage(4, 7, 0)], [Usage(13, 24, 0)], vectors[::-1], {"short": 200, "long": 2100})
    missing = Result(THEIRS[-1], reason="cannot be installed")
    text = "\n".join(peers.report([theirs, missing, ours, whole], documents=2, body_tokens=2000))
    assert f"| {REFERENCE.name} | 26.0 | 26.0 | 23% | 4.0 | 0.1 | 1,004 | 39 | 40 | 50.0% | 1.000000 | 1.000000 |" in text
    assert f"| {OURS[0].name} | 9.0 | 9.0 | 44% | - | 0.2 | 1,004 | 112 | 161 | 50.0% | 1.000000 | 1.000000 |" in text
    assert f"| {OURS[-1].name} | 13.0 | 13.0 | 31% | - | 0.2 | 2,100 | 162 | 211 | 0.0% | - | - |" in text
    assert f"| job | {REFERENCE.name}: whole | {REFERENCE.name}: steady |" in text
    assert f"| {OURS[0].name} | 2.89 | 4.00 |" in text
    assert f"* {THEIRS[-1].name} did not run: cannot be installed" in text


@pytest.mark.parametrize("main", [corpus.main, peers.main, run.main])
def test_the_command_line_explains_itself_and_refuses_nonsense(main: Callable[..., None]) -> None:
    app = typer.Typer()
    app.command()(main)
    shown = CliRunner().invoke(app, ["--help"], terminal_width=200)
    assert shown.exit_code == 0
    assert "tokens" in shown.stdout
    assert CliRunner().invoke(app, ["--tokens", "0"]).exit_code == 2


def test_an_unknown_part_is_refused() -> None:
    app = typer.Typer()
    app.command()(run.main)
    assert CliRunner().invoke(app, ["--part", "engine"]).exit_code == 2
