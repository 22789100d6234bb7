"""What every table format must keep, found by its module: killed anywhere, written twice, by two at once, it holds the ledger's
rows once, and older versions stay readable."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from operators.models.layout import read_layout
from pipeline.errors import ConfigError
from pipeline.following import find_format
from pipeline.ledger.publish import commit_schema, manifest_records
from pipeline.source.types import _NAMES, parse_type
from tests.format_cases import FOLLOWERS, FORMATS, OTHER_SCHEMA, SCHEMA, Ledger, rows
from tests.head_cases import CASES, HEADS, case_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    """A module of pipeline.formats."""
    found: str = request.param
    return found


@pytest.fixture
def local(tmp_path: Path) -> Ledger:
    """A table on disk with two shards, nothing published."""
    return start(str(tmp_path / "a table"), {})


@pytest.fixture(params=["disk", "s3"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    """The same, on disk and on S3."""
    if request.param == "disk":
        return start(str(tmp_path / "a table"), {})
    server = request.getfixturevalue("s3_server")
    return start(request.getfixturevalue("s3_url")(), server.storage_options)


def start(url: str, options: dict[str, Any]) -> Ledger:
    """Two shards."""
    ledger = Ledger(url, options)
    ledger.put("a", rows("a", 7))
    ledger.put("b", rows("b", 5))
    return ledger


def test_it_holds_what_the_ledger_holds_in_every_version(name: str, table: Ledger) -> None:
    owns = {}

    def check(generation: str = "a1", schema: pa.Schema = SCHEMA) -> None:
        commit = table.publish(generation, schema)
        owns[commit.version] = own = table.follow(name, commit)
        assert table.state(name) == (commit.version, own)
        assert table.read(name, own) == table.expected()
        read = find_format(name).read(table.place, own).schema
        assert read.remove_metadata().equals(find_format(name).reads_as(commit_schema(commit)))

    check()
    table.put("c", rows("c", 4))
    check()
    table.put("a", rows("a", 6, seed=50))  # changed
    del table.shards["b"]  # gone
    check()
    before = dict(table.shards)
    table.shards = {key: (1, rows(key, 3, OTHER_SCHEMA)) for key in ("a", "c")}
    check("b2", OTHER_SCHEMA)
    table.shards = before  # the old generation again, on its old files
    check()
    table.shards.clear()
    check()
    assert table.expected() == []
    for version, own in owns.items():
        assert table.read(name, own) == table.expected(version)


def test_twice_is_once(name: str, table: Ledger) -> None:
    first = table.publish()
    own = table.follow(name, first)
    keys = table.store.list("")
    assert table.follow(name, first) == own
    assert table.store.list("") == keys
    table.put("c", rows("c", 4))
    newest = table.publish()
    after = table.follow(name, newest)
    assert after > own
    if name in FOLLOWERS:  # a run that comes late with an older version undoes nothing
        assert table.follow(name, first) == after
    assert table.state(name) == (newest.version, after)
    assert table.read(name, after) == table.expected()


def test_versions_that_were_missed_are_made_up_for(name: str, local: Ledger) -> None:
    local.follow(name, local.publish())
    local.put("c", rows("c", 4))
    local.publish()  # and killed
    local.put("a", rows("a", 2))
    commit = local.publish()
    assert local.read(name, local.follow(name, commit)) == local.expected()


def test_without_any_row(name: str, local: Ledger) -> None:
    local.shards.clear()
    commit = local.publish()
    assert local.read(name, local.follow(name, commit)) == []
    local.put("a", rows("a", 2))
    commit = local.publish()
    assert local.read(name, local.follow(name, commit)) == local.expected()


@pytest.mark.parametrize("at", ["create", "change"])
def test_at_once_it_happens_once(name: str, at: str, table: Ledger) -> None:
    if at == "change":
        table.follow(name, table.publish())
        table.put("c", rows("c", 4))
    older = table.publish()
    table.put("d", rows("d", 3))
    newer = table.publish()
    with ThreadPoolExecutor(6) as pool:
        owns = list(pool.map(lambda commit: table.follow(name, commit), [older, newer] * 3))
    assert table.state(name) == (newer.version, max(owns))
    assert table.read(name, max(owns)) == table.expected()


@pytest.mark.parametrize("name", FOLLOWERS)
@pytest.mark.parametrize("at", ["create", "change"])
def test_a_change_is_made_on_what_was_read_or_not_at_all(name: str, at: str, table: Ledger) -> None:
    format_ = find_format(name)
    if at == "change":
        table.follow(name, table.publish())
        table.put("c", rows("c", 4))
    older = table.publish()
    change = format_.prepare(table.place, format_.standing(table.place), older, manifest_records(table.store, older))
    table.put("d", rows("d", 3))
    own = table.follow(name, table.publish())
    with pytest.raises(Exception) as refused:  # noqa: PT011 -- each library's own
        format_.switch(table.place, change)
    assert not isinstance(refused.value, (TypeError, AttributeError))
    assert table.state(name) == (older.version + 1, own)
    assert table.read(name, own) == table.expected()


_KILLED = """
import os, signal, sys
from pipeline.following import find_format, follow
from pipeline.ledger.publish import head
from pipeline.ledger.store import open_store
name, url, moment = sys.argv[1:]
module = find_format(name)
switch = module.switch
def dies(place, change):
    if moment == "after":
        switch(place, change)
    os.kill(os.getpid(), signal.SIGKILL)
module.switch = dies
store = open_store(url)
follow(name, store, {}, head(store))
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", FOLLOWERS)
def test_killed_between_write_and_commit(name: str, moment: str, local: Ledger) -> None:
    own = local.follow(name, local.publish())
    local.put("a", rows("a", 6, seed=50))
    local.put("c", rows("c", 4))
    commit = local.publish()
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, name, local.url, moment], cwd=ROOT, env={**os.environ}, capture_output=True, timeout=60
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    # A reader sees the one version or the other, whole.
    version, at = local.state(name) or (0, 0)
    assert (version, at) == ((1, own) if moment == "before" else (2, at))
    assert local.read(name, at) == local.expected(version)
    after = local.follow(name, commit)
    assert (after == at) == (moment == "after")
    assert local.read(name, after) == local.expected()


@pytest.fixture(scope="session")
def result_types(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.DataType]:
    """The type of each head's column, and of its other forms."""
    types = {}
    for head in HEADS:
        module = importlib.import_module(f"operators.heads.{head}")
        layout = read_layout(case_model(tmp_path_factory.mktemp("model"), head))
        variants = {"embedding": [{"dtype": "float16"}, {"dtype": "int8", "normalize": True}, {"aggregate": "none"}]}
        variants |= {"question_answering": [{"top_k": 2}], "zero_shot": [{"multi_label": True}]}
        for more in [{}, *variants.get(head, [])]:
            settings = {**CASES[head].settings, **more}
            types[f"{head}_{len(types)}"] = module.Head(module.Config(**settings), layout).type
    return types


@pytest.mark.parametrize("name", FORMATS)
def test_each_type_comes_back_or_is_refused_at_planning(name: str, tmp_path: Path, result_types: dict[str, pa.DataType]) -> None:
    kept = [*_NAMES, "timestamp[us, UTC]", "timestamp[ms, Asia/Shanghai]", "list<string>", "list<list<int32>>"]
    types = {f"kept_{i}": parse_type(spelled) for i, spelled in enumerate(kept)} | result_types
    types |= {"kept_map": pa.map_(pa.string(), pa.int64()), "kept_decimal": pa.decimal128(12, 2)}
    refused = {column for column, type_ in types.items() if str(type_) in REFUSED.get(name, ())}
    for column in refused:
        with pytest.raises(ConfigError, match=f"output.format: column '{column}'"):
            find_format(name).reads_as(pa.schema([(column, types[column])]))
    schema = pa.schema([*SCHEMA, *(pa.field(c, t) for c, t in types.items() if c not in refused)])
    ledger = Ledger(str(tmp_path), {})
    ledger.put("a", rows("a", 12, schema))
    ledger.put("b", rows("b", 5, schema))
    own = ledger.follow(name, ledger.publish(schema=schema))
    assert ledger.read(name, own) == ledger.expected()
    read = find_format(name).read(ledger.place, own).schema
    assert read.remove_metadata().equals(find_format(name).reads_as(schema))


REFUSED = {
    "delta": {
        *("uint8", "uint16", "uint32", "uint64", "halffloat", "timestamp[ns]"),
        "fixed_size_list<item: halffloat>[32]",
    }
}
"""What a format cannot hold, as its page in the documents says."""
