"""Cross-domain few-shot learning with vision-language models, in JAX."""

__version__ = "0.1.0"
