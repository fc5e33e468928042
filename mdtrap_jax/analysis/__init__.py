"""Instruments: what a run's adaptation did to images, texts, gradients and attention."""
