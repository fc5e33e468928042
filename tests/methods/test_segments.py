"""Steps are the same however many of them run in one call, for every variant.

In a process of its own, compiled as a user's run is: tests are compiled with other flags.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Three variants of the miniature's upper half. There jaxlib 0.10.2 made a program for CPUs of an
# earlier form of the encoder whose loop was wrong in the first variant, by percents.
CHECK = """
import jax
import numpy as np

from configs import default
from mdtrap_jax.experiments import finetune
from mdtrap_jax.run import devices, programs

devices.use_cpu_cores()
config = default.get_config()
config.model.name, config.lora.position = "miniature", "half-up"
config.data.name, config.data.domain, config.data.queries = "world", "dermoscopy", 2
config.adapt.steps, config.episodes = 12, len(jax.devices())
for term in ("svl", "ra"):
  config.objective[term].window = (0, 5)
config.variants = {"vlm": {"svl": 0.0, "ra": 0.0}, "ra": {"svl": 0.0}, "svl_ra": {}}
(group,) = finetune.experiment(config).groups
ready, mesh = group.prepare(), programs.task_mesh()
compiled = programs.make_programs(ready.method, mesh, True)
(batch,) = ready.batches(group.tasks, mesh.size)
params = programs.replicate(ready.method.needed(ready.params), mesh)
tasks = programs.spread(batch.tasks, mesh)


def adapt(segment):
  prepared, state = compiled.prepare(params, tasks, ready.weights)
  for start in range(0, 12, segment):
    state = compiled.run[True](params, prepared, state, start, start + segment)
  return jax.device_get(state.params)


jax.tree.map(np.testing.assert_array_equal, adapt(12), adapt(1))
"""


def test_one_call_of_many_steps_is_many_calls_of_one():
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  environment["PYTHONPATH"] = str(ROOT)
  command = [sys.executable, "-c", CHECK]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
