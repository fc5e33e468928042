"""The papers' tables as sweeps: `mdtrap sweep sweep_paper:TABLE --workdir=DIR`.

TABLE is one_shot, five_shot or ablation. docs/tables.md has the published numbers, docs/devices.md
how a sweep is split over jobs.
"""

from ml_collections import ConfigDict

TABLES = {
  "one_shot": {},  # as below
  "five_shot": {"sweep.shots": (5,)},
  "ablation": {"sweep.backbones": ("clip",), "sweep.methods": ("baseline", "svl", "ra", "svl_ra")},
}


def get_config(table="one_shot"):
  config = ConfigDict()
  config.experiment = "sweep"
  config.sweep = sweep = ConfigDict()
  # The cells are all combinations; {backbone}, {target}, {method}, {shots} and {seed} stand for
  # what a cell has of each.
  sweep.config = "backbones:{backbone},{target},{method}"  # --config of a cell
  sweep.fields = ("data.shots={shots}", "seed={seed}")  # of its config, set as on a command line
  sweep.backbones = ("clip", "pe_core")  # blocks of rows of the table
  sweep.targets = ("isic", "eurosat", "cropdisease", "chestx")  # columns of the table
  # A method whose config has variants has a row for each: METHOD/VARIANT.
  sweep.methods = ("baseline", "svl_ra")  # rows of the table
  # The others are compared with each of these on the episodes that they share.
  sweep.references = ()  # rows; (): the first
  sweep.shots = (1,)  # a table for each
  sweep.seeds = (0,)  # a run for each; the table takes their episodes together

  if table not in TABLES:
    raise ValueError(f"sweep_paper:{table}: no such table; choose from {sorted(TABLES)}.")
  config.update_from_flattened_dict(TABLES[table])
  return config
