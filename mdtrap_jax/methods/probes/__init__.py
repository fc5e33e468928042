"""Baselines on frozen features, one file each; see `methods/probe.py` and `docs/heads.md`."""
