"""The config: complete defaults, overrides, and an error that names the field, the value and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Config, from_dict, load
from pipeline.errors import ConfigError

TASK = {"head": "embedding", "model": "package:some_model"}


def job(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "input": {"path": "/data/in"},
        "tasks": {"vector": TASK},
        "output": {"path": "/data/out"},
    }
    return {**base, **changes}


def test_everything_but_input_output_and_one_task_has_a_default() -> None:
    config = from_dict(job())
    assert config.input.text == "text"
    assert config.input.max_document == 64 * 2**20
    assert config.segments.policy == "window"
    assert config.runtime.engine == "ray"
    assert config.tasks["vector"].settings.aggregate == "mean"


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (job(inputs={}), "inputs: unknown key; did you mean 'input'?"),
        (job(runtime={"enigne": "ray"}), "runtime.enigne: unknown key; did you mean 'engine'?"),
        (job(tasks={"v": {"head": "embeding", "model": "m"}}), "did you mean 'embedding'?"),
        (
            job(tasks={"v": {"head": "embedding", "model": "m", "agregate": "mean"}}),
            "tasks.v.agregate: unknown key; did you mean 'aggregate'?",
        ),
        (job(tasks={"v": {"head": "embedding"}}), "tasks.v.model: is missing"),
        (job(tasks={"v": {**TASK, "atention": {}}}), "tasks.v.atention: unknown key; did you mean 'attention'?"),
        (job(tasks={"v": {**TASK, "attention": {"kin": "topk"}}}), "tasks.v.attention.kin: unknown key; did you mean 'kind'?"),
        (job(tasks={"v": {**TASK, "attention": {"kind": "sparse"}}}), "tasks.v.attention.kind: Input should be 'full' or 'topk'"),
        (job(tasks={"v": {**TASK, "attention": {"k": 0}}}), "tasks.v.attention.k: Input should be greater than 0, got 0"),
        (job(tasks={}), "tasks"),
        (job(output={}), "output.path: is missing"),
        (job(runtime={"workers": 0}), "runtime.workers"),
        (job(runtime={"backend": "torhc"}), "runtime.backend: 'torhc' is none of the encoders; did you mean 'torch'?"),
        (job(input={"path": "/x", "max_document": "sixty"}), "input.max_document: could not parse"),
        (job(input={"path": "/x", "keep": ["id"]}), "column 'id' is already the output's"),
        (job(input={"path": "/x", "keep": ["vector"]}), "column 'vector' is already the output's"),
        (job(input={"path": "/x", "keep": ["__text"]}), "reserved"),
        (job(input={"path": "/x", "keep": {"lang": "strnig"}}), "input.keep"),
        (job(input={"path": "http://host/x"}), "protocol 'http' is not allowed"),
        (job(input={"path": "s3://b/x::file://y"}), "'::' URL chains are not allowed"),
        (job(input={"path": []}), "the list is empty"),
        (job(name="night/../x"), "name"),
        (job(input={"path": "/x", "keep": [{"lang": "string"}]}), "input.keep: a list of keep names columns"),
        (job(tasks={"v": {"head": "embedding", "model": "m", "settings": {}}}), "settings: unknown key"),
        (job(tasks={"v": {"model": "m"}}), "tasks.v: head is missing"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(raw)
    assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "raw",
    [
        job(input={"path": "s3://user:hunter2@bucket/x"}),
        job(input={"path": "s3://bucket/x", "storage_options": {"secret": "hunter2"}}),
        job(input={"path": "s3://bucket/x", "storage_options": {"client_kwargs": {"aws_secret_access_key": "hunter2"}}}),
        job(input={"path": "s3://bucket/x", "storage_options": {"endpoint_url": "http://user:hunter2@host"}}),
        job(output={"path": "az://c/x?sv=2&sig=hunter2"}),
        job(input={"path": "s3://bucket/x", "storage_options": {"pwd": "hunter2"}}),
        job(input={"path": "s3://bucket/x", "storage_options": {"a": [{"secret": "hunter2"}]}}),
        job(tasks={"v": {"head": "embedding", "model": "s3://user:hunter2@bucket/m"}}),
    ],
)
def test_secrets_are_refused_and_never_printed(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(raw)
    assert "hunter2" not in str(caught.value)
    assert "environment" in str(caught.value)


@pytest.mark.parametrize("override", ["s3://key:hunter2@bucket", "input.path.x=hunter2", "input.storage_options=hunter2"])
def test_overrides_that_are_refused_are_not_repeated(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(job(), [override])
    assert "hunter2" not in str(caught.value)


def test_the_address_of_a_config_is_not_repeated_where_it_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load("s3://key:hunter2@bucket/job.yaml")
    assert "hunter2" not in str(caught.value)


def test_harmless_storage_options_are_taken() -> None:
    config = from_dict(
        job(input={"path": "s3://b/x", "storage_options": {"endpoint_url": "http://localhost:9000", "anon": True}})
    )
    assert config.input.storage_options["anon"] is True


def test_overrides_win_and_are_read_as_yaml() -> None:
    config = from_dict(job(), ["runtime.workers=2", "segments.overlap=16", "input.keep=[lang, title]", "tasks.vector.dim=64"])
    assert config.runtime.workers == 2
    assert config.segments.overlap == 16
    assert list(config.input.keep) == ["lang", "title"]
    assert config.tasks["vector"].settings.dim == 64


@pytest.mark.parametrize("override", ["runtime.workers", "=3", "a..b=1", "name.x=1"])
def test_a_bad_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        from_dict(job(name="n"), [override])


def test_a_config_survives_the_way_through_plain_data() -> None:
    config = from_dict(
        job(input={"path": "/x", "keep": {"lang": None, "n": "int32"}}),
        ["tasks.vector.prompt=query: ", "tasks.vector.attention.kind=topk"],
    )
    assert (config.tasks["vector"].attention.kind, config.tasks["vector"].attention.k) == ("topk", 16)
    assert from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_plain_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = from_dict(job(input={"path": "shards"}, output={"path": "s3://bucket/out"}))
    assert config.input.path == str(tmp_path / "shards")
    assert config.output.path == "s3://bucket/out"


def test_load_reads_safe_yaml_only(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping"):
        load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")
    path.write_text(yaml.safe_dump(job()))
    assert isinstance(load(path), Config)


@pytest.mark.parametrize(("text", "size"), [("64MiB", 64 * 2**20), ("1.5GB", 1_500_000_000), (4096, 4096), ("10 kib", 10240)])
def test_sizes(text: object, size: int) -> None:
    assert from_dict(job(input={"path": "/x", "max_document": text})).input.max_document == size
