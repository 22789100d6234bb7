"""The public Python API.

import tidemill

config = tidemill.load("job.yaml", ["runtime.engine=local"])
report = tidemill.run(config)
dataset = tidemill.open_output(config.output.path)      # a pyarrow.dataset.Dataset
"""

from pipeline.config import Config, from_dict, load
from pipeline.errors import ConfigError, Fenced, Held, Incomplete, Terminated, TidemillError
from pipeline.flow import run
from pipeline.table import open_output

__version__ = "0.1.0"
__all__ = [
    "Config",
    "ConfigError",
    "Fenced",
    "Held",
    "Incomplete",
    "Terminated",
    "TidemillError",
    "from_dict",
    "load",
    "open_output",
    "run",
]
