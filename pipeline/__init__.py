"""The pipeline: config, source, stages, engines and ledger. `pipeline.flow` is where to start reading."""

from pipeline.table import open_output

__all__ = ["open_output"]
