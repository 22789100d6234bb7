"""What must not get out: lines "secrets" and "log injection / PII" of the threat model.

Real processes, on their good and on their failing ways; then everything they wrote is searched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs import console
from pipeline.config import from_dict
from pipeline.errors import ConfigError, Incomplete, TidemillError
from pipeline.flow import run
from pipeline.quarantine import SCHEMA
from pipeline.wording import describe, frames, message_lines, printable, without_secrets
from tests.conftest import S3
from tests.jobs.conftest import ROOT
from tests.tiny import tiny_sentence_transformer

SECRET = "canary-5ecret-4f1c0ffee"
SENTENCE = "canary sentence about a patient named Quibblesworth"
WORDS = (SENTENCE, "Quibblesworth", SECRET)
ENV = {
    "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": f"{SECRET}-session", "HF_TOKEN": f"hf_{SECRET}",
    "RAY_AUTH_TOKEN": f"{SECRET}-ray", "AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={SECRET}", "DB_PASSWORD": SECRET,
}  # fmt: skip
FORGED = "x\n2026-11-28 ERROR forged line\r\x1b[2J\x1b]0;title\x07"

Job = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"))


@pytest.fixture
def job(tmp_path: Path, model: Path) -> Job:
    """Writes a config; keyword arguments win over parts of its sections."""

    def write(**sections: Any) -> Path:
        config: dict[str, Any] = {
            "input": {"path": str(tmp_path / "in")},
            "tasks": {"vector": {"head": "embedding", "model": str(model)}},
            "output": {"path": str(tmp_path / "out")},
            "runtime": {"engine": "local", "device": "cpu"},
        }
        for name, section in sections.items():
            config[name] = {**config[name], **section}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "job.yaml"

    return write


def tidemill(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process that has secrets in its environment."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1", **ENV, **env}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def written(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file below `folder`; Parquet as its values, without the columns that hold data on purpose."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield (
                str(path),
                json.dumps(table.drop_columns([c for c in ("id", "_shard") if c in table.column_names]).to_pylist(), default=str),
            )
            yield str(path), repr(table.schema.metadata)
        else:
            yield str(path), path.read_bytes().decode(errors="replace")


def assert_clean(text: str, where: str) -> None:
    """No canary, no terminal control, no forged line."""
    for word in WORDS:
        assert word not in text, f"{word!r} in {where}: {text[-2000:]}"
    for control in "\x1b\x07\r\x00\x9b":
        assert control not in text, f"{control!r} in {where}: {text[-2000:]!r}"
    assert not any(line.startswith("2026-11-28 ERROR") for line in text.splitlines()), f"forged line in {where}"


def assert_all_clean(process: subprocess.CompletedProcess[str], *folders: Path) -> None:
    assert_clean(process.stdout, "stdout")
    assert_clean(process.stderr, "stderr")
    for folder in folders:
        for name, text in written(folder):
            assert_clean(text, name)


def fill(folder: Path) -> int:
    """Shards full of canaries, with each kind of bad row; the number of rows."""
    folder.mkdir()
    good = [json.dumps({"text": f"{SENTENCE} {i} {FORGED}", "id": f"{FORGED}{i}"}) for i in range(30)]
    bad = [
        f'{{"text": "{SENTENCE}', f'["{SENTENCE}"]', f'{{"text": ["{SENTENCE}"]}}', f'{{"text": 1, "{SENTENCE}": 2}}',
        f'{{"text": "\\ud800 {SENTENCE}"}}', f'{SENTENCE}', f'{{"text": "{SENTENCE}", "text": nul}}',
    ]  # fmt: skip
    (folder / f"{FORGED.replace('/', '')}.jsonl").write_text("\n".join(good + bad) + "\n")
    (folder / "bytes.jsonl").write_bytes(b'{"text": "' + SENTENCE.encode() + b'\xff\xfe"}\n')
    pq.write_table(pa.table({"text": [SENTENCE] * 5, FORGED: [1] * 5}), folder / "c.parquet")
    torn = (folder / "c.parquet").read_bytes()
    (folder / "torn.parquet").write_bytes(torn[: len(torn) // 2])
    return len(good) + len(bad) + 1 + 5 + 1


def test_a_run_that_succeeds_says_nothing_of_documents_or_secrets(tmp_path: Path, job: Job) -> None:
    rows = fill(tmp_path / "in")
    config = job(input={"id": "id"})
    for command in (("plan", config), ("run", config, "--json"), ("run", config), ("doctor", config)):
        done = tidemill(*command)
        assert done.returncode in (0, 1), done.stderr[-2000:]
        assert_all_clean(done)
    books = json.loads(tidemill("status", tmp_path / "out", "--json").stdout)
    assert books["rows_in"] == rows
    assert (
        books["quarantined"] == {"bad_json": 5, "not_text": 2, "bad_encoding": 2, "unreadable": 1}
        or sum(books["quarantined"].values()) >= 8
    )
    for name, text in written(tmp_path / "out"):
        if "/quarantine/" in name or not name.endswith(".parquet"):
            for word in WORDS:
                assert word not in text, name
    for path in (tmp_path / "out" / "quarantine").rglob("*.parquet"):
        table = pq.read_table(path)
        assert table.schema.names == SCHEMA.names
        for entry in table.to_pylist():
            assert_clean(entry["detail"], "detail")
            assert_clean(entry["reason"], "reason")


FAILING: dict[str, dict[str, Any]] = {
    "a password in a URL": {"input": {"path": f"s3://user:{SECRET}@bucket/x"}},
    "a token in a query": {"output": {"path": f"az://box/x?sig={SECRET}"}},
    "a key in options": {"input": {"path": "s3://bucket/x", "storage_options": {"secret": SECRET}}},
    "a key below options": {
        "input": {"path": "s3://bucket/x", "storage_options": {"client_kwargs": {"aws_session_token": SECRET}}}
    },
    "a password in an endpoint": {
        "input": {"path": "s3://bucket/x", "storage_options": {"endpoint_url": f"http://u:{SECRET}@h"}}
    },
    "a wrong type": {"input": {"path": "s3://bucket/x", "storage_options": SECRET}},
    "a wrong type below": {"input": {"path": {"key": SECRET}}},
}


@pytest.mark.parametrize("kind", FAILING)
def test_what_is_refused_is_not_repeated(job: Job, kind: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_dict(yaml.safe_load(job(**FAILING[kind]).read_text()))
    if kind != "a wrong type below":  # a mapping where a path belongs is no place for a secret; it is still not shown
        assert refused.value.exit_code == 2
    assert SECRET not in str(refused.value)


def test_a_store_that_cannot_be_reached_is_named_without_secrets(tmp_path: Path, job: Job) -> None:
    """Libraries name the endpoint as the environment has it, and it may hold a password."""
    config = job(output={"path": "s3://bucket/out"})
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps({"text": SENTENCE}))
    done = tidemill("run", config, "--json", AWS_ENDPOINT_URL=f"http://user:{SECRET}@127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert done.returncode == 2, done.stderr[-2000:]
    assert_all_clean(done)


def test_a_store_that_fails_in_the_middle(tmp_path: Path, job: Job, s3_server: S3) -> None:
    """The error of a piece names the store's answer, not the credentials that it was asked with."""
    bucket = s3_server.make_bucket()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{FORGED}.jsonl").write_text(json.dumps({"text": SENTENCE}))
    script = (
        "import json, sys\n"
        "from pipeline.config import load\n"
        "from pipeline import flow, stages\n"
        "from jobs import __main__ as main\n"
        "def broken(self, batch):\n"
        f"    raise OSError('PUT http://user:{SECRET}@host/x?X-Amz-Signature={SECRET} failed: ' + sys.argv[1])\n"
        "stages.Stages._write = broken\n"
        "sys.argv = ['tidemill', 'run', sys.argv[2], '--json']\n"
        "main.main()\n"
    )
    options = {"storage_options": s3_server.storage_options}
    config = job(output={"path": f"s3://{bucket}/out", **options})
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **ENV, "AWS_SECRET_ACCESS_KEY": SECRET, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, FORGED, str(config)], env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 3, done.stderr[-2000:]
    assert "PUT http://***@host/x?X-Amz-Signature=***" in done.stderr
    assert "x\\n2026-11-28 ERROR forged line\\r\\x1b[2J" in done.stderr, "the shard is named, in one line"
    assert_all_clean(done)


# An error that nobody foresaw, of a library that quotes what it was given.
UNFORESEEN = """
import sys
import pipeline.planning
from jobs import __main__ as main
def quoting(*_):
    try:
        raise ValueError(sys.argv[0])
    except ValueError as error:
        raise RuntimeError(f"tokenizer failed on {sys.argv[0]}") from error
pipeline.planning.list_shards = quoting
sys.argv = [sys.argv[1], *sys.argv[2:]]
main.main()
"""


def test_an_unforeseen_error_shows_where_it_was_and_no_message(job: Job) -> None:
    command = [sys.executable, "-c", UNFORESEEN, f"{SENTENCE} {SECRET} {FORGED}", "run", str(job()), "--json"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **ENV, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1, done.stderr[-2000:]
    assert_all_clean(done)
    assert "in quoting" in done.stderr
    assert "RuntimeError" in json.loads(done.stdout)["error"]
    loud = subprocess.run(command, env={**env, "TIDEMILL_TRACEBACK": "1"}, capture_output=True, text=True, timeout=240)
    assert SENTENCE in loud.stderr, "who asks for the messages gets them"


def test_errors_of_libraries_cost_their_message(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that quotes the document where no row can be blamed, inside of a run."""

    def quoting(*_: Any, **__: Any) -> None:
        raise ValueError(f"cannot write {SENTENCE!r}")

    monkeypatch.setattr("pipeline.sink.write", quoting)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps({"text": SENTENCE}))
    raw = {
        "input": {"path": str(tmp_path / "in")},
        "tasks": {"vector": {"head": "embedding", "model": str(model), "prompt": ""}},
        "output": {"path": str(tmp_path / "out")},
        "segments": {"max_tokens": 16},
        "runtime": {"engine": "local", "device": "cpu"},
    }
    with pytest.raises(Incomplete, match="ValueError in quoting") as failed:
        run(from_dict(raw))
    assert_clean(str(failed.value), "the message")


@pytest.mark.ray
@pytest.mark.slow
def test_the_ray_engine_says_no_more(tmp_path: Path, job: Job) -> None:
    """Its workers' logs lie on the machine, so they are searched too."""
    fill(tmp_path / "in")
    config = job(input={"id": "id"}, runtime={"engine": "ray", "workers": 1})
    folder = Path("/tmp") / f"tmr{os.getpid()}"
    env = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", "RAY_ADDRESS": ""}
    folder.mkdir()
    try:
        done = tidemill("run", config, "--json", **env)
        assert done.returncode == 0, done.stderr[-3000:]
        assert_all_clean(done)
        logs = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".log", ".out", ".err")]
        assert logs
        for path in logs:
            text = path.read_bytes().decode(errors="replace")
            assert not any(word in text for word in WORDS), path
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=False)


@given(st.text())
def test_what_is_printable_is_one_line_of_printable_characters(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    lines = message_lines(text).split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://user:{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"http://{SECRET}@host/x", "http://***@host/x"),
        ("abfs://box@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        (f"abfs://box:{SECRET}@account/x", "abfs://***@account/x"),
        (f"http://h/x?X-Amz-Signature={SECRET}&a=1", "http://h/x?X-Amz-Signature=***&a=1"),
        (f"https://h/c?sv=1&sig={SECRET}", "https://h/c?sv=1&sig=***"),
        (f"the key is {SECRET}.", "the key is ***."),
        ("runtime.tokens_per_pack=64 of s3://bucket", "runtime.tokens_per_pack=64 of s3://bucket"),
        ("nothing here: a@b, x=1", "nothing here: a@b, x=1"),
    ],
)
def test_secrets_are_taken_out(monkeypatch: pytest.MonkeyPatch, text: str, shown: str) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    assert without_secrets(text) == shown


def test_describe_and_frames_have_no_message_of_others() -> None:
    def inner() -> None:
        raise ValueError(SENTENCE)

    def outer() -> None:
        try:
            inner()
        except ValueError as error:
            raise KeyError(SENTENCE) from error

    with pytest.raises(KeyError) as caught:
        outer()
    shown = [describe(caught.value), *frames(caught.value)]
    assert not any("canary" in line for line in shown)
    assert shown[0].startswith("KeyError in outer")
    assert shown[-1] == "ValueError"
    assert describe(OSError(5, "disk\nbroken\x1b")) == "OSError: [Errno 5] disk"
    assert describe(TidemillError("ours\x1b[2J")) == "TidemillError: ours\\x1b[2J"


def test_the_last_message_is_clean_in_both_forms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tidemill", "run", "--json"])
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    with pytest.raises(SystemExit):
        console.fail(f"shard {FORGED} at s3://u:{SECRET}@b: {SECRET}", 3)
    shown = capsys.readouterr()
    assert_clean(shown.out, "stdout")
    assert_clean(shown.err, "stderr")
    assert_clean(json.loads(shown.out)["error"], "the JSON")
