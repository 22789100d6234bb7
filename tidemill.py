"""The public Python API.

import tidemill

config = tidemill.load("job.yaml", ["runtime.engine=local"])
report = tidemill.run(config)
dataset = tidemill.open_output(config.output.path)      # a pyarrow.dataset.Dataset
"""

from pipeline.config import Config, from_dict, load
from pipeline.errors import ConfigError, Fenced, Held, Incomplete, Terminated, TidemillError
from pipeline.evaluation import Evaluation, Question, evaluate_output
from pipeline.flow import run
from pipeline.holding import accept
from pipeline.table import open_output

__version__ = "0.2.0"
__all__ = [
    "Config",
    "ConfigError",
    "Evaluation",
    "Fenced",
    "Held",
    "Incomplete",
    "Question",
    "Terminated",
    "TidemillError",
    "accept",
    "evaluate_output",
    "from_dict",
    "load",
    "open_output",
    "run",
]
