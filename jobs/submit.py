"""`tidemill submit`: the same command as `run`, as a Ray job on a cluster, with the job's own exit code."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import typer
import yaml

from jobs.console import ConfigPath, Json, Overrides, clean, err, print_json
from pipeline.clusters import is_local, refuse_open_cluster
from pipeline.config import Config, load
from pipeline.engines import GRACE_SECONDS
from pipeline.errors import ConfigError, TidemillError
from pipeline.wording import message_lines

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PACKAGES = ("jobs", "pipeline", "operators")
_POLL_SECONDS = 1.0
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "TIDEMILL_CACHE", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Settings without secrets that the job sees as the submitter does; credentials belong to the cluster."""


def command(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Annotated[str | None, typer.Option(help="The cluster's job server, http://HOST:8265; default: RAY_ADDRESS.")] = None,
    date: Annotated[str | None, typer.Option(help="The night this job is for, as YYYY-MM-DD; default: today.")] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when the job is accepted.")] = False,
    json: Json = False,
) -> int:
    """Submit the job to a Ray cluster, stream its logs and end with its exit code.

    The same name, date and config give the same submission: a second call follows the first job. After a job that failed or
    was stopped, a new attempt is submitted, which goes on from the records.
    """
    settings = load(config, overrides)
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError("no cluster is named; give --address http://HOST:8265 or set RAY_ADDRESS", field="--address")
    if urlsplit(address).username is not None:
        raise ConfigError("the address carries credentials; give the token by RAY_AUTH_TOKEN instead", field="--address")
    refuse_open_cluster(address, "--address")
    if not is_local(address):
        refuse_unguarded(address)
    # Imported here: it takes a second, and `tidemill --help` should not.
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except Exception as error:
        raise TidemillError(
            f"cannot reach the job server at {address}: {error}; is the head up, and does RAY_AUTH_TOKEN fit?"
        ) from error
    submission = _submit(client, settings, date or datetime.date.today().isoformat())
    code = 0 if no_wait else _follow(client, submission)
    if json:
        info = client.get_job_info(submission)
        print_json({"submission_id": submission, "status": str(info.status.value), "exit_code": None if no_wait else code})
    return code


def refuse_unguarded(address: str) -> None:
    """ConfigError where a job server speaks to one who shows no token; a token of ours does not make it ask for one."""
    if not address.startswith(("http://", "https://")):
        return
    try:
        with urlopen(f"{address.rstrip('/')}/api/jobs/", timeout=10) as answer:  # http alone, as above  # nosec B310
            code = answer.status
    except HTTPError as error:
        code = error.code
    except OSError:
        return  # not reached: the client says so
    if code not in (401, 403):
        raise ConfigError(
            f"the job server answers without a token (HTTP {code}), so whoever reaches it can run code there; start the cluster "
            "with RAY_AUTH_MODE=token",
            field="--address",
        )


def _submit(client: JobSubmissionClient, settings: Config, date: str) -> str:
    """The submission id of a job that runs, has succeeded, or was just submitted."""
    from ray.job_submission import JobStatus

    plain = settings.to_dict()
    digest = hashlib.sha256(yaml.safe_dump(plain).encode()).hexdigest()[:8]
    attempts = {job.submission_id: job.status for job in client.list_jobs()}
    attempt = 1
    while (submission := f"{settings.name}-{date}-{digest}-{attempt}") in attempts:
        if attempts[submission] not in {JobStatus.FAILED, JobStatus.STOPPED}:
            err.print(f"following {submission}, submitted before")
            return submission
        attempt += 1
    with tempfile.TemporaryDirectory() as folder:
        _bundle(Path(folder), plain)
        client.submit_job(
            entrypoint="python -m jobs run job.yaml --json",
            submission_id=submission,
            runtime_env=environment(folder),
            metadata={"name": settings.name, "date": date},
        )
    err.print(f"submitted {submission}")
    return submission


def _bundle(folder: Path, plain: dict[str, Any]) -> None:
    """The code and the config as a working directory, the same from a checkout and from an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    for package in _PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "job.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")


def environment(folder: str) -> dict[str, Any]:
    """Ray's runtime_env of the job: what is in `folder`, and settings. Nothing is installed there, so the image is what runs."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Ray kills a stopped job after three seconds unless told otherwise; the writes in flight need longer.
    settings = {**passed_on, "RAY_JOB_STOP_WAIT_TIME_S": str(int(GRACE_SECONDS) + 10)}
    return {"working_dir": folder, "env_vars": settings}


def _follow(client: JobSubmissionClient, submission: str) -> int:
    """Stream the job's log to standard error until it ends; its exit code."""
    from ray.job_submission import JobStatus

    async def tail() -> None:
        async for lines in client.tail_job_logs(submission):
            err.print(clean(lines), end="", markup=False, soft_wrap=True)

    asyncio.run(tail())
    while not (info := client.get_job_info(submission)).status.is_terminal():
        time.sleep(_POLL_SECONDS)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return 143
    err.print(message_lines(f"{submission}: {info.message}"), markup=False)
    return info.driver_exit_code or 1
