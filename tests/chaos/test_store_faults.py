"""Jobs whose store is busy, slow, breaks off, loses answers or is away: the table is as without, or the run fails in words."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from s3fs import S3FileSystem

from pipeline import flow, remote
from pipeline.config import Config
from pipeline.errors import ConfigError, Incomplete
from pipeline.ledger.store import open_store
from pipeline.sections import Input
from pipeline.source.listing import list_shards
from tests.chaos.profile import scaled
from tests.chaos.proxy import Rule
from tests.chaos.store_fixtures import Corpus, _shards, corpus, polling
from tests.jobs.conftest import tidemill

__all__ = ["_shards", "corpus", "tidemill"]

pytestmark = pytest.mark.slow

Tidemill = Callable[..., "subprocess.CompletedProcess[str]"]


def write_job(folder: Path, config: Config) -> Path:
    """The config as a file, for the command line."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config.to_dict()))
    return path


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits and bounds of seconds instead of minutes."""
    monkeypatch.setattr(remote, "_PAUSES", (0.05, 0.05, 0.05))
    monkeypatch.setattr(remote, "REQUEST_SECONDS", 4.0)
    monkeypatch.setattr(remote, "_BUDGET_SECONDS", 4.0)
    monkeypatch.setattr(S3FileSystem, "retries", 2)


@pytest.mark.parametrize("seed", range(scaled(1, 20)))
def test_a_fifth_of_all_requests_refused_and_as_many_answers_slow(corpus: Corpus, seed: int) -> None:
    rules = (Rule("busy", probability=0.2), Rule("late", probability=0.2, seconds=0.1), Rule("dribble", "GET", 0.1, seconds=0.2))
    output = corpus.new_output()
    with corpus.proxy(seed, *rules) as proxy:
        config = corpus.config(proxy.endpoint_url, output)
        with polling(output, corpus.s3.storage_options) as seen:
            report = corpus.run(config)
        assert proxy.injected["busy"] > 0.1 * proxy.requests
    assert (report["version"], report["published"]) == (1, True)
    assert set(seen) <= {1}
    corpus.check(output)


@pytest.mark.parametrize("seed", range(scaled(1, 10)))
def test_answers_lost_after_the_effect(corpus: Corpus, seed: int) -> None:
    output = corpus.new_output()
    lost = [Rule("lost", f"^PUT .*/{folder}/", 0.5) for folder in ("data", "_records")]
    lost += [Rule("lost", "^PUT .*/_manifests/", times=1), Rule("lost", "^PUT .*/_commits/", times=1)]
    with corpus.proxy(seed, *lost) as proxy:
        config = corpus.config(proxy.endpoint_url, output)
        with polling(output, corpus.s3.storage_options) as seen:
            report = corpus.run(config)
        assert all(rule.struck for rule in lost)
    assert (report["version"], report["published"]) == (1, True), "the own commit has to be recognized"
    assert report["encoded"] == report["pieces"], "the own records have to be recognized"
    assert set(seen) <= {1}
    corpus.check(output)
    again = corpus.run(corpus.config(corpus.s3.endpoint_url, output))
    assert (again["version"], again["published"], again["encoded"]) == (1, False, 0)


@pytest.mark.usefixtures("hasty")
def test_answers_lost_that_nobody_repeats(corpus: Corpus) -> None:
    """The storage library gives up at once: the ledger itself has to find out what happened."""
    output = corpus.new_output()
    lost = [Rule("failing", "^PUT .*/_records/", 0.3), Rule("lost", "^PUT .*/(_records|_commits)/", 0.7)]
    with corpus.proxy(7, *lost) as proxy:
        report = corpus.run(corpus.config(proxy.endpoint_url, output, impatient=True))
        assert all(rule.struck for rule in lost)
    assert (report["version"], report["published"], report["encoded"]) == (1, True, report["pieces"])
    corpus.check(output)


@pytest.mark.parametrize("seed", range(scaled(1, 10)))
def test_reads_that_break_off_or_lie_cost_no_row(corpus: Corpus, seed: int) -> None:
    rules = [Rule(kind, "^GET .*/in/", share) for kind, share in (("torn", 0.3), ("short", 0.15), ("reset", 0.1))]
    rules += [Rule("torn", "^GET .*/(_records|_commits|_manifests|data)/", 0.2), Rule("torn", "^GET .*list-type", 0.1)]
    output = corpus.new_output()
    with corpus.proxy(seed, *rules) as proxy:
        corpus.run(corpus.config(proxy.endpoint_url, output))
        corpus.check(output)
        again = corpus.run(corpus.config(proxy.endpoint_url, output))
        assert all(rule.struck for rule in rules[:4])
    assert (again["encoded"], again["published"]) == (0, False)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["torn", "short"])
@pytest.mark.parametrize("shard", ["part-0", "part-2"])  # Parquet, gzip
def test_a_shard_that_cannot_be_fetched_is_not_corrupt(corpus: Corpus, kind: str, shard: str) -> None:
    output = corpus.new_output()
    # What planning reads is let through, so that the fault meets the workers.
    with corpus.proxy(1, Rule(kind, f"^GET .*/in/{shard}", skip=1)) as proxy:
        corpus.fail(corpus.config(proxy.endpoint_url, output, impatient=True))
    report = corpus.run(corpus.config(corpus.s3.endpoint_url, output))
    assert report["published"]
    assert report["reused"] > 0
    corpus.check(output)


@pytest.mark.usefixtures("hasty")
def test_a_store_that_is_away_ends_the_run_in_bounded_time_and_the_rerun_goes_on(corpus: Corpus) -> None:
    output = corpus.new_output()
    with corpus.proxy(1, Rule("failing", skip=60)) as proxy:
        started = time.monotonic()
        error = corpus.fail(corpus.config(proxy.endpoint_url, output, impatient=True))
        assert time.monotonic() - started < 60
        assert "Internal" in str(error)
        proxy.rules = ()
        report = corpus.run(corpus.config(proxy.endpoint_url, output, impatient=True))
    assert report["published"]
    assert report["reused"] > 0, "what was recorded before is not done again"
    corpus.check(output)


def test_a_store_that_is_away_for_some_seconds_costs_no_rerun(corpus: Corpus) -> None:
    output = corpus.new_output()
    with corpus.proxy(1, Rule("busy", skip=50, times=8)) as proxy:
        report = corpus.run(corpus.config(proxy.endpoint_url, output))
        assert proxy.injected["busy"] == 8
    assert report["published"]
    corpus.check(output)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", ["stuck", "dribble"])
def test_no_request_hangs(corpus: Corpus, kind: str) -> None:
    with corpus.proxy(1, Rule(kind, "^GET .*/in/part-1", seconds=600)) as proxy:
        started = time.monotonic()
        corpus.fail(corpus.config(proxy.endpoint_url, impatient=kind == "stuck"))
        assert time.monotonic() - started < 90


@pytest.mark.usefixtures("hasty")
def test_a_folder_that_cannot_be_listed_is_no_empty_folder(corpus: Corpus) -> None:
    bucket = corpus.s3.make_bucket()
    client = corpus.client()
    for name in ("a/x.jsonl", "b/x.jsonl"):
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=b'{"text": "x"}\n')
    with corpus.proxy(1, Rule("failing", "^GET .*prefix=in/b")) as proxy:
        options = {"endpoint_url": proxy.endpoint_url, "config_kwargs": {"retries": {"max_attempts": 0}}}
        for path in ("in/*/*.jsonl", "in/b"):
            with pytest.raises(Incomplete, match="run the same command again"):
                list_shards(Input(path=f"s3://{bucket}/{path}", storage_options=options), "/nowhere/out")
        proxy.rules = ()
        found = list_shards(Input(path=f"s3://{bucket}/in/*/*.jsonl", storage_options=options), "/nowhere/out")
    assert [s.key for s in found.shards] == ["a/x.jsonl", "b/x.jsonl"]


def test_a_store_that_ignores_the_condition_is_refused(corpus: Corpus, tmp_path: Path, tidemill: Tidemill) -> None:
    output = corpus.new_output()
    with corpus.proxy(1, Rule("blind", "^PUT")) as proxy:
        config = corpus.config(proxy.endpoint_url, output)
        with pytest.raises(ConfigError, match=r"output\.path: the store ignores the condition"):
            corpus.run(config)
        doctor = tidemill("doctor", write_job(tmp_path, config), "--json")
        storage = next(c for c in json.loads(doctor.stdout)["checks"] if c["name"] == "storage")
        assert doctor.returncode == 1
        assert (storage["ok"], "writers created the same key at once" in storage["detail"]) == (False, True)
        alone = corpus.config(proxy.endpoint_url, output, alone=True)
        assert corpus.run(alone)["published"]
    corpus.check(output)


def test_a_night_with_nothing_new_writes_nothing(corpus: Corpus) -> None:
    output = corpus.new_output()
    corpus.run(corpus.config(corpus.s3.endpoint_url, output))
    with corpus.proxy(1) as proxy:
        assert corpus.run(corpus.config(proxy.endpoint_url, output))["published"] is False
        assert [line for line, _ in proxy.log if not line.startswith(("GET", "HEAD"))] == []


@pytest.mark.ray
@pytest.mark.skipif(not scaled(0, 1), reason="a minute of Ray: CHAOS=long")
def test_workers_of_ray_meet_the_same_faults(corpus: Corpus, tmp_path: Path, tidemill: Tidemill) -> None:
    output = corpus.new_output()
    rules = (Rule("busy", probability=0.05), Rule("lost", "^PUT", 0.1), Rule("torn", "^GET .*/in/", 0.2))
    with corpus.proxy(3, *rules) as proxy, polling(output, corpus.s3.storage_options):
        job = write_job(tmp_path, corpus.config(proxy.endpoint_url, output, engine="ray", workers=1))
        process = tidemill("run", job, "--json")
        assert process.returncode == 0, process.stderr[-3000:]
        assert all(rule.struck for rule in rules)
    report = json.loads(process.stdout)
    assert (report["version"], report["published"]) == (1, True)
    corpus.check(output)


@pytest.mark.ray
@pytest.mark.filterwarnings("default::DeprecationWarning:ray")  # of Ray's own settings
@pytest.mark.skipif(not scaled(0, 1), reason="half a minute of Ray: CHAOS=long")
def test_a_run_that_gives_up_leaves_no_work_in_a_ray_that_goes_on(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, which joined Ray before it ran a job, and keeps it."""
    import ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(flow, "OUTAGES", 1)
    output = corpus.new_output()
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150_000_000, log_to_driver=False)
    try:
        with corpus.proxy(1, Rule("failing", "^PUT .*/data/")) as proxy:
            corpus.fail(corpus.config(proxy.endpoint_url, output, impatient=True, engine="ray", workers=1))
            proxy.rules = ()
            time.sleep(10)
            requests = proxy.requests
            time.sleep(5)
            assert proxy.requests == requests
        assert ray.is_initialized()
        recorded = len(open_store(output, corpus.s3.storage_options).list("_records"))
        report = corpus.run(corpus.config(corpus.s3.endpoint_url, output))
        assert report["reused"] == recorded < report["pieces"] // 2
    finally:
        ray.shutdown()
