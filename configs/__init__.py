"""Configs of the experiments; `default.py` says what every field means."""
