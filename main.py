"""Runs an experiment: `python main.py --config=configs/chestx.py --workdir=runs/chestx`.

The same as `mdtrap run`; `--help` says more.
"""

import sys

from mdtrap_jax.__main__ import main

if __name__ == "__main__":
  sys.exit(main(["run", *sys.argv[1:]]))
