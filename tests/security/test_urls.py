"""Where a job may read and write: lines "fsspec URL abuse" and "names from data" of the threat model."""

from __future__ import annotations

import json
import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.console import parse_options
from pipeline import open_output
from pipeline.config import Config, from_dict, load
from pipeline.errors import ConfigError, TidemillError
from pipeline.flow import run
from pipeline.ledger.publish import head, manifest_records
from pipeline.ledger.records import from_json, from_table, to_json, to_table
from pipeline.planning import make_plan
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from pipeline.table import open_table
from pipeline.urls import PROTOCOLS, check_url
from tests.tiny import tiny_sentence_transformer

KNOWN = sorted(fsspec.available_protocols())
OTHERS = [name for name in KNOWN if name not in PROTOCOLS]


def job(**places: str) -> dict[str, Any]:
    """A config whose places are as given."""
    exports = {"exports": places["exports"]} if "exports" in places else {}
    return {
        "input": {"path": places.get("input", "/data/in")},
        "tasks": {"vector": {"head": "embedding", "model": places.get("model", "someone/model")}},
        "output": {"path": places.get("output", "/data/out")},
        "runtime": {**exports},
    }


def test_the_table_is_over_all_that_fsspec_knows() -> None:
    assert len(KNOWN) >= 55
    assert set(PROTOCOLS) <= set(KNOWN)
    assert {"http", "reference", "github", "data", "memory", "sftp", "zip", "local", "dir", "simplecache"} <= set(OTHERS)


@pytest.mark.parametrize("place", ["input", "output", "model", "exports"])
@pytest.mark.parametrize("name", [*OTHERS, "HTTP", "Reference", "nonsense", "s3n", "file+s3", ""])
def test_a_protocol_off_the_list_is_refused_everywhere(name: str, place: str) -> None:
    with pytest.raises(ConfigError, match="is not allowed") as refused:
        from_dict(job(**{place: f"{name}://host/x"}))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("name", OTHERS)
def test_configs_and_tables_are_not_read_by_other_protocols(name: str) -> None:
    for read in (load, open_table, open_output):
        with pytest.raises(ConfigError, match="is not allowed"):
            read(f"{name}://host/x")


@pytest.mark.parametrize("url", ["data:text/plain,input", "DATA:,x", "data://x"])
def test_a_url_that_is_its_own_content_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="'data' is not allowed"):
        load(url)


@pytest.mark.parametrize("inner", KNOWN)
@pytest.mark.parametrize("outer", ["simplecache", "reference", "zip", "s3", "file"])
def test_chains_are_refused(outer: str, inner: str) -> None:
    for chain in (f"{outer}::{inner}://x", f"{outer}://a::{inner}://x", f"{inner}://x::{outer}://fo=1"):
        with pytest.raises(ValueError, match="chains are not allowed"):
            check_url(chain)


def test_the_chain_that_reads_any_file_does_so_without_us(tmp_path: Path) -> None:
    """What the rule is for: one URL that leads to a file of the attacker's choice."""
    (tmp_path / "secret").write_text("TOPSECRET")
    (tmp_path / "ref.json").write_text(json.dumps({"version": 1, "refs": {"x.jsonl": [f"file://{tmp_path}/secret"]}}))
    url = f"reference://x.jsonl::file://{tmp_path}/ref.json"
    with fsspec.open(url, "rb", remote_protocol="file") as file:
        assert file.read() == b"TOPSECRET"
    with pytest.raises(ConfigError, match="chains are not allowed"):
        from_dict(job(input=url))


METADATA = [
    "http://169.254.169.254", "http://169.254.169.254:80/latest", "https://169.254.170.2", "http://[fe80::1]", "http://[fe80::1%25eth0]",
    "http://metadata.google.internal", "http://METADATA.google.internal.", "http://metadata.goog", "http://[fd00:ec2::254]",
    "http://[::ffff:169.254.169.254]", "http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376", "http://169.254.43518",
    "http://100.100.100.200", "http://168.63.129.16", "169.254.169.254", "169.254.169.254:80", "metadata.google.internal",
]  # fmt: skip


@pytest.mark.parametrize("url", METADATA)
@pytest.mark.parametrize("shape", ["plain", "nested", "listed"])
def test_hosts_that_hand_out_credentials_are_no_stores(url: str, shape: str) -> None:
    options: dict[str, Any] = {
        "plain": {"endpoint_url": url},
        "nested": {"client_kwargs": {"endpoint_url": url}},
        "listed": {"config_kwargs": {"proxies": [{"http": url}]}},
    }[shape]
    for section in ("input", "output"):
        raw = job(input="s3://bucket/in", output="s3://bucket/out")
        raw[section]["storage_options"] = options
        with pytest.raises(ConfigError, match="metadata service"):
            from_dict(raw)


@pytest.mark.parametrize(
    "url", ["s3://169.254.169.254/latest", "abfs://box@169.254.169.254/x", "gs://metadata.google.internal/x"]
)
def test_nor_are_they_in_urls(url: str) -> None:
    with pytest.raises(ConfigError, match="metadata service"):
        from_dict(job(input=url))


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9000", "http://minio:9000", "https://s3.example.com", "http://10.0.0.8", "http://[fd00::8]"]
)
def test_other_hosts_are_taken(url: str) -> None:
    raw = job(input="s3://bucket/in")
    raw["input"]["storage_options"] = {"endpoint_url": url, "anon": True, "config_kwargs": {"retries": {"max_attempts": 2}}}
    assert from_dict(raw).input.storage_options["endpoint_url"] == url


@pytest.mark.parametrize(
    "pair", ["secret=hunter2hunter2", "endpoint_url=http://u:hunter2hunter2@h", "endpoint_url=http://169.254.169.254"]
)
def test_options_on_the_command_line_are_held_to_the_same(pair: str) -> None:
    with pytest.raises(ConfigError, match="--storage-option") as refused:
        parse_options([pair])
    assert "hunter2" not in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An input with one shard, and a secret beside it."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.jsonl").write_text('{"text": "TOPSECRET"}\n')
    return tmp_path / "in"


def listed(path: object) -> list[str]:
    return [s.url for s in list_shards(Input(path=str(path)), "/nowhere/out").shards]


@pytest.mark.parametrize("target", ["../secret/s.jsonl", "../secret", "a.jsonl", "/etc/passwd", "nowhere"])
@pytest.mark.parametrize("name", ["link.jsonl", "sub/link.jsonl"])
@pytest.mark.parametrize("pattern", ["", "*.jsonl", "**/*.jsonl", "*", "*/*"])
def test_links_in_a_folder_are_not_followed_and_are_counted(folder: Path, target: str, name: str, pattern: str) -> None:
    (folder / "sub" / "b.jsonl").write_text('{"text": "b"}\n')
    link = folder / name
    link.symlink_to(target if target.startswith("/") else os.path.relpath(folder / target, link.parent))
    listing = list_shards(Input(path=str(folder / pattern)), "/nowhere/out")
    assert {s.url for s in listing.shards} <= {str(folder / "a.jsonl"), str(folder / "sub" / "b.jsonl")}
    if pattern in ("", "**/*.jsonl", "*"):
        assert listing.ignored == 1, "what is not read is said"


def test_a_link_that_the_config_names_is_followed(folder: Path) -> None:
    """Its author is trusted; whoever fills the folder is not."""
    (folder.parent / "link").symlink_to(folder)
    (folder.parent / "one.jsonl").symlink_to(folder / "a.jsonl")
    assert listed(folder.parent / "link") == [str(folder.parent / "link" / "a.jsonl")]
    assert listed(folder.parent / "one.jsonl") == [str(folder.parent / "one.jsonl")]


@pytest.mark.parametrize(
    "path", ["%2e%2e/secret", "%2e%2e/secret/s.jsonl", "..%2fsecret", "file:///{folder}/%2e%2e/secret", "sub%00"]
)
def test_escapes_in_paths_are_not_decoded(folder: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=r"input\.path"):
        listed(path.format(folder=folder) if "://" in path else folder / path)


def test_names_that_look_like_ways_out_are_names(folder: Path) -> None:
    for name in ("%2e%2e%2fsecret%2fs.jsonl", "..hidden.jsonl", "-rf.jsonl", "a b;$(id)`id`.jsonl", "%s%n.jsonl"):
        (folder / name).write_text('{"text": "x"}\n')
    assert {Path(url).parent for url in listed(folder)} == {folder}
    assert "..hidden.jsonl" not in {Path(url).name for url in listed(folder)}  # a hidden file like any other


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"))


def config(tmp_path: Path, model: Path, **settings: Any) -> Config:
    raw = job(input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=str(model))
    raw["input"] |= {"keep": ["k"], **settings}
    return from_dict(raw | {"runtime": {"engine": "local", "device": "cpu"}})


NAMES = [
    "../../x",
    "/etc/passwd",
    "a\nERROR b",
    "a\0b",
    "x" * 5000,
    "\u202etxt",
    "s3://bucket/x",
    "..",
    "{0}",
    "%2e%2e",
    "\x1b[2J",
    "'; drop",
]


def test_ids_and_values_have_no_effect_on_paths(tmp_path: Path, model: Path) -> None:
    """The control: the same rows with plain names give files in the same places."""
    trees = []
    for names in (NAMES, [f"n{i}" for i in range(len(NAMES))]):
        root = tmp_path / str(len(trees))
        (root / "in" / "k2=v").mkdir(parents=True)
        rows = [json.dumps({"text": "some text", "doc": name, "k": name}) for name in names]
        (root / "in" / "k2=v" / "a.jsonl").write_text("\n".join(rows))
        run(config(root, model, id="doc"))
        rows_out = open_output(str(root / "out")).to_table(columns=["id", "k"]).to_pylist()
        assert [r["id"] for r in rows_out] == [r["k"] for r in rows_out] == names
        trees.append(
            sorted(re.sub(r"_runs/\w+", "_runs/*", str(p.parent.relative_to(root))) for p in root.rglob("*") if p.is_file())
        )
        assert {p.name for p in tmp_path.iterdir()} == {str(i) for i in range(len(trees))}
    assert trees[0] == trees[1]


def test_names_of_shards_have_no_effect_on_paths(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "in" / "x=..%2F..%2Fy"
    folder.mkdir(parents=True)
    names = ["a\nERROR b.jsonl", "\x1b[2Jc.jsonl", "%2e%2e%2fd.jsonl", "e" * 240 + ".jsonl", "*.jsonl", "{0}.jsonl", "s3:x.jsonl"]
    for name in names:
        (folder / name).write_text('{"text": "t", "k": "v"}\n')
    done = run(config(tmp_path, model))
    assert done["books"]["rows_out"] == len(names)
    table = open_output(str(tmp_path / "out")).to_table(columns=["_shard"])
    assert sorted(table["_shard"].to_pylist()) == sorted(f"{folder.name}/{name}" for name in names)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    for path in (tmp_path / "out").rglob("*"):
        assert path.name.isascii()
        assert path.name.isprintable()
        assert not set(path.name) & set("%*{}: ")


OUTSIDE = [
    "../secret.parquet", "data/../../secret.parquet", "/etc/passwd", "s3://other/data/x.parquet", "data/g/../../../x", "",
    "secret.parquet", "_commits/00000001.json", "file:///etc/passwd", "data\\..\\x", "./data/x.parquet", "quarantine/../../x",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A committed table."""
    root = tmp_path_factory.mktemp("table")
    (root / "in").mkdir()
    (root / "in" / "a.jsonl").write_text('{"text": "t", "k": "v"}\n{"text": null}\n')
    run(config(root, model))
    return root


@pytest.mark.parametrize("where", OUTSIDE)
@pytest.mark.parametrize("field", ["file", "quarantine_file"])
def test_records_and_manifests_lead_to_nothing_outside_of_the_table(table: Path, where: str, field: str) -> None:
    store, commit = open_table(str(table / "out"))
    (record,) = manifest_records(store, commit)
    evil = replace(record, **{field: where})
    with pytest.raises(TidemillError, match="is not a record"):
        from_json(to_json(evil), "_records/x.json")
    with pytest.raises(TidemillError, match="is not a manifest"):
        from_table(to_table([evil]), "_manifests/x.parquet")


@pytest.mark.parametrize("where", ["../secret.parquet", "_manifests/../../secret.parquet", "/etc/passwd", "data/x.parquet", ""])
def test_a_commit_leads_to_no_manifest_outside_of_the_table(tmp_path: Path, table: Path, where: str) -> None:
    store, commit = open_table(str(table / "out"))
    pq.write_table(to_table(manifest_records(store, commit)), table / "secret.parquet")
    raw = json.loads((table / "out" / "_commits" / "00000001.json").read_text()) | {"manifest": where}
    (tmp_path / "out" / "_commits").mkdir(parents=True)
    (tmp_path / "out" / "_commits" / "00000001.json").write_text(json.dumps(raw))
    with pytest.raises(TidemillError, match="is not a commit"):
        open_output(str(tmp_path / "out"))


def test_objects_of_the_table_are_data_alone(table: Path) -> None:
    """JSON and Parquet of plain types: nothing in a table is unpickled."""
    for path in (p for p in (table / "out").rglob("*") if p.is_file()):
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        else:
            assert path.suffix == ".parquet"
            assert not any(isinstance(t, pa.BaseExtensionType) for t in pq.read_schema(path).types)


def test_random_bytes_in_records_and_commits_are_refused_in_words(table: Path) -> None:
    store, commit = open_table(str(table / "out"))
    (record,) = manifest_records(store, commit)
    good, rng = to_json(record), random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            made = from_json(bytes(content), "key")
        except TidemillError:
            refused += 1
        else:
            assert made.file is None or made.file.startswith(("data/", "quarantine/"))
    assert refused > 100
    assert head(store) == commit


def test_a_plan_leaves_nothing_behind(tmp_path: Path, model: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "t", "k": "v"}\n')
    make_plan(config(tmp_path, model))
    assert {p.name for p in tmp_path.iterdir()} == {"in"}
