"""Listing: which files are shards, their keys and versions, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline.errors import ConfigError
from pipeline.ledger.pieces import Shard
from pipeline.sections import Input
from pipeline.source.listing import Listing, compression_of, format_of, list_shards, partitions


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for name in ("a.parquet", "sub/b.PQ", "sub/c.jsonl", "d.ndjson.gz", "e.json.zst", "deep/er/f.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    for name in ("_g.jsonl", ".h.jsonl", "_tmp/i.jsonl", ".hidden/j.parquet", "notes.txt", "README", "k.parquet.crc", "l.gz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(*paths: object, **settings: Any) -> Listing:
    return list_shards(Input(path=[str(p) for p in paths], **settings), "/nowhere/out")


def keys(listing: Listing) -> list[str]:
    return [s.key for s in listing.shards]


def test_a_directory_is_read_recursively_without_hidden_and_unknown_files(corpus: Path) -> None:
    listing = listed(corpus)
    assert keys(listing) == ["a.parquet", "d.ndjson.gz", "deep/er/f.json", "e.json.zst", "sub/b.PQ", "sub/c.jsonl"]
    assert listing.ignored == 8
    assert listing.shards[0] == Shard("a.parquet", str(corpus / "a.parquet"), listing.shards[0].version, 9)


def test_hidden_folders_above_the_root_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "_x" / ".y").mkdir(parents=True)
    (tmp_path / "_x" / ".y" / "a.jsonl").touch()
    assert keys(listed(tmp_path / "_x" / ".y")) == ["a.jsonl"]


def test_a_file_is_a_root_whatever_its_name(corpus: Path) -> None:
    assert keys(listed(corpus / "_g.jsonl")) == ["_g.jsonl"]
    assert keys(listed(f"file://{corpus}/sub/c.jsonl")) == ["c.jsonl"]


def test_globs_are_relative_to_what_precedes_the_first_wildcard(corpus: Path) -> None:
    assert keys(listed(corpus / "s*/*.jsonl", corpus / "sub/c.jsonl")) == [str(corpus / "sub/c.jsonl")]
    assert keys(listed(corpus / "s*/*.jsonl")) == ["sub/c.jsonl"]
    assert keys(listed(corpus / "**/*.json*")) == ["deep/er/f.json", "e.json.zst", "sub/c.jsonl"]
    assert keys(listed(corpus / "s*")) == ["sub/b.PQ", "sub/c.jsonl"]
    assert keys(listed(corpus / "sub/?.jsonl")) == ["c.jsonl"]


def test_several_roots_have_full_urls_as_keys_and_each_shard_once(corpus: Path) -> None:
    listing = listed(corpus / "sub", corpus / "a.parquet", corpus / "**/*.jsonl", corpus / "sub/")
    assert keys(listing) == [str(corpus / "a.parquet"), str(corpus / "sub/b.PQ"), str(corpus / "sub/c.jsonl")]


def test_a_name_with_wildcards_or_chains_in_it_is_a_name(tmp_path: Path) -> None:
    for name in ("a[1].jsonl", "b::c.jsonl", "d=e f%20#.jsonl"):
        (tmp_path / name).write_text("{}")
    assert keys(listed(tmp_path / "a[1].jsonl")) == ["a[1].jsonl"]
    assert keys(listed(tmp_path)) == ["a[1].jsonl", "b::c.jsonl", "d=e f%20#.jsonl"]


def test_a_forced_format(corpus: Path) -> None:
    assert keys(listed(corpus, format="parquet")) == ["a.parquet", "sub/b.PQ"]
    assert keys(listed(corpus / "notes.txt", format="jsonl")) == ["notes.txt"]
    assert keys(listed(corpus / "*.txt", format="jsonl")) == ["notes.txt"]
    assert format_of("notes.txt", "jsonl") == "jsonl"


def test_no_match_says_what_was_looked_for(corpus: Path) -> None:
    for path in (corpus / "nothing", corpus / "*.csv", corpus / ".hidden" / "*.jsonl"):
        with pytest.raises(ConfigError, match=r"input\.path: no Parquet or JSONL file matches .*\.ndjson") as error:
            listed(path)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match="1 files were left out"):
        listed(corpus / "notes.txt")


@pytest.mark.parametrize("missing", ["gone", "*.csv", "gone.jsonl", "notes.txt"])
def test_each_path_has_to_lead_to_a_shard(corpus: Path, missing: str) -> None:
    for paths in ([corpus / "sub", corpus / missing], [corpus / missing, corpus / "sub"]):
        with pytest.raises(ConfigError) as error:
            listed(*paths)
        assert error.value.field == "input.path"
        assert f"file matches {corpus / missing};" in str(error.value)


def test_the_version_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    before = listed(path).shards[0].version
    assert listed(path).shards[0].version == before
    path.write_text("[]")
    os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 1))
    assert listed(path).shards[0].version != before


@pytest.mark.parametrize(
    ("source", "output", "refused"),
    [
        ("in", "in", True),
        ("in/", "in/out", True),
        ("in", "in/../in/deep/out", True),
        ("in/*.jsonl", "in/out", False),
        ("in/**/*.parquet", "in/out", True),
        ("in/*", "in/out", True),
        ("in/a.jsonl", "in/out", False),
        ("in", "in2", False),
        ("in", ".", False),
    ],
)
def test_output_inside_the_input_is_refused(tmp_path: Path, source: str, output: str, refused: bool) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / "in" / name).touch()
    settings = Input(path=f"{tmp_path}/{source}")
    if refused:
        with pytest.raises(ConfigError, match="lies inside the input") as error:
            list_shards(settings, f"{tmp_path}/{output}")
        assert error.value.field == "output.path"
    else:
        assert list_shards(settings, f"{tmp_path}/{output}").shards


def test_output_inside_the_input_is_seen_through_links(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(ConfigError, match="lies inside"):
        list_shards(Input(path=str(tmp_path / "in")), str(tmp_path / "link" / "out"))


def test_partitions_come_from_folders() -> None:
    shard = Shard("k", "s3://bucket/in/lang=zh/day=2026%2D11/empty=/none=__HIVE_DEFAULT_PARTITION__/x=y.parquet", "v", 1)
    assert partitions(shard) == {"lang": "zh", "day": "2026-11", "empty": "", "none": None}


def test_compression() -> None:
    assert [compression_of(u) for u in ("a.jsonl", "a.jsonl.gz", "a.json.ZST", "gz")] == [None, "gz", "zst", "gz"]


def test_s3(s3_server: Any) -> None:
    bucket = s3_server.make_bucket()
    client = boto3.client("s3", endpoint_url=s3_server.endpoint_url)
    for name in ("in/a.jsonl", "in/sub/b.parquet", "in/_c.jsonl", "in/.d/e.jsonl", "in/f.txt", "in/lang=de/g.jsonl.gz"):
        client.put_object(Bucket=bucket, Key=name, Body=name.encode())
    options = {"storage_options": s3_server.storage_options}
    listing = listed(f"s3://{bucket}/in/", **options)
    assert keys(listing) == ["a.jsonl", "lang=de/g.jsonl.gz", "sub/b.parquet"]
    assert listing.ignored == 3
    etag = client.head_object(Bucket=bucket, Key="in/a.jsonl")["ETag"].strip('"')
    assert listing.shards[0] == Shard("a.jsonl", f"s3://{bucket}/in/a.jsonl", etag, 10)
    assert keys(listed(f"s3://{bucket}/in/*/*.parquet", **options)) == ["sub/b.parquet"]
    assert keys(listed(f"s3://{bucket}/in/a.jsonl", f"s3://{bucket}/in/sub", **options)) == [
        f"s3://{bucket}/in/a.jsonl",
        f"s3://{bucket}/in/sub/b.parquet",
    ]
    assert keys(listed(f"s3://{bucket}", **options))[0] == "in/a.jsonl"
    client.put_object(Bucket=bucket, Key="in/new.jsonl", Body=b"")
    assert "new.jsonl" in keys(listed(f"s3://{bucket}/in", **options)), "a listing must not be cached"
    for missing in (f"s3://{bucket}/nothing", "s3://no-such-bucket-here/in"):
        with pytest.raises(ConfigError, match=r"input\.path"):
            listed(missing, **options)
    with pytest.raises(ConfigError, match="lies inside"):
        list_shards(Input(path=f"s3://{bucket}/in", **options), f"s3://{bucket}/in/out")


def test_an_unreachable_store_is_a_config_error_without_secrets(s3_server: Any) -> None:
    with pytest.raises(ConfigError, match="cannot list s3://bucket/in: EndpointConnectionError"):
        listed(
            "s3://bucket/in",
            storage_options={"endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 0}}},
        )
