"""A config is data, and not too much of it: line "YAML" of the threat model."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.console import parse_options
from pipeline import plain_yaml
from pipeline.config import from_dict, load
from pipeline.errors import ConfigError

JOB: dict[str, Any] = {
    "input": {"path": "/data/in"},
    "tasks": {"vector": {"head": "embedding", "model": "someone/model"}},
    "output": {"path": "/data/out"},
}


def bomb(levels: int, width: int, merge: bool) -> str:
    """A few lines that stand for width ** levels values."""
    if merge:
        lines = ["a0: &a0 {k: v}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}]}}" for i in range(1, levels)]
    else:
        lines = ["a0: &a0 x"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


BAD = {
    "python object": "name: !!python/object/apply:os.mkdir ['{mark}']",
    "python module": "name: !!python/module:os",
    "python name": "name: !!python/name:os.system",
    "python tuple": "name: !!python/tuple [a]",
    "own tag": "name: !evil x",
    "alias bomb": bomb(30, 9, merge=False),
    "merge bomb": bomb(30, 9, merge=True),
    "itself": "a: &a [*a]",
    "deep": "[" * 100_000,
    "deep and closed": "{a: " * 200 + "1" + "}" * 200,
    "deep blocks": "\n".join("  " * i + "a:" for i in range(300)),
    "huge number": "a: " + "9" * 10_000,
    "no date": "a: 2026-13-45",
    "huge file": "a: b\n" * 300_000,
    "two documents": "a: b\n---\nc: d",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_config_is_refused_quickly_and_in_words(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(BAD[kind].replace("{mark}", str(tmp_path / "mark")))
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(ConfigError, match=r"job\.yaml is not valid YAML") as refused:
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.value.exit_code == 2
    assert peak < 64 * 2**20
    assert time.perf_counter() - started < 10
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("kind", [k for k in BAD if "\n---" not in BAD[k]])
def test_values_on_the_command_line_are_held_to_the_same(tmp_path: Path, kind: str) -> None:
    """What is no YAML is a text, as it is everywhere on the command line, and no text runs."""
    text = BAD[kind].replace("{mark}", str(tmp_path / "mark"))
    assert plain_yaml.scalar(text) == text
    assert parse_options([f"anon={text}"]) == {"anon": text}
    assert not (tmp_path / "mark").exists()


def test_anchors_in_bounds_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "input: {path: /data/in}\noutput: {path: /data/out}\ntasks:\n"
        "  a: &a {head: embedding, model: someone/model}\n  b: {<<: *a, aggregate: max}\n"
    )
    assert load(path).tasks["b"].settings.aggregate == "max"


@pytest.mark.parametrize("text", ["${env:HOME}", "${HOME}", "$HOME", "{{ HOME }}", "%(HOME)s", "!ENV HOME"])
def test_the_environment_does_not_get_into_a_config(tmp_path: Path, text: str) -> None:
    raw = {**JOB, "tasks": {"vector": {**JOB["tasks"]["vector"], "prompt": text + ": "}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(raw))
    assert load(tmp_path / "job.yaml").tasks["vector"].settings.prompt == text + ": "
    assert from_dict(JOB, [f"tasks.vector.prompt='{text}: '"]).tasks["vector"].settings.prompt == text + ": "


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"), max_size=20),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text("abc<&*", max_size=3), inside, max_size=4),
    max_leaves=20,
)


@given(_VALUES)
def test_what_is_read_is_what_safe_load_reads(value: Any) -> None:
    text = yaml.safe_dump(value)
    assert plain_yaml.read(text) == yaml.safe_load(text)
