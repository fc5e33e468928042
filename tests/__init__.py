"""The tests, which mirror the folders of `mdtrap_jax`."""

import gc

# A program's trace is a great many objects that live on: looking for cycles among them every 700
# took a tenth of the time that tracing takes.
gc.set_threshold(50_000, 20, 20)
