"""The parameters of T5X's configurables that gin/t5x binds.

`t5x_parameters.json` was made by

    PYTHONPATH=T5X:AIRIO:JESTIMATOR:. python -m tests.golden.t5x_parameters

with checkouts of T5X at cc342d4, airio at 69897df and jestimator at 326824a,
so that a misspelt binding shows where T5X is not installed.
"""

import importlib
import inspect
import json
import pathlib

PATH = pathlib.Path(__file__).resolve().with_name('t5x_parameters.json')
NAMES = (
  't5x.adafactor.Adafactor',
  't5x.adafactor.standard_logical_factor_rules',
  't5x.eval.evaluate',
  't5x.gin_utils.summarize_gin_config',
  't5x.infer.infer',
  't5x.partitioning.PjitPartitioner',
  't5x.partitioning.standard_logical_axis_rules',
  't5x.train.train',
  't5x.trainer.Trainer',
  't5x.utils.CheckpointConfig',
  't5x.utils.DatasetConfig',
  't5x.utils.RestoreCheckpointConfig',
  't5x.utils.SaveCheckpointConfig',
)


def record() -> dict[str, list[str]]:
  """Returns the names of the parameters of each of `NAMES`."""
  parameters = {}
  for name in NAMES:
    module, attribute = name.rsplit('.', 1)
    configurable = getattr(importlib.import_module(module), attribute)
    parameters[name] = list(inspect.signature(configurable).parameters)
  return parameters


if __name__ == '__main__':
  PATH.write_text(json.dumps(record(), indent=2) + '\n')
