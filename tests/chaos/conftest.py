"""The small corpus and the tiny model of the tests of jobs."""

from tests.jobs.conftest import job, tidemill, tiny_model

__all__ = ["job", "tidemill", "tiny_model"]
