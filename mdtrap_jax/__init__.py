"""Cross-domain few-shot learning with vision-language models, in JAX."""

from importlib import import_module

__version__ = "0.1.0"

# The public list: name and where it lives. Each is imported when it is first asked for.
_PUBLIC = {
  "ArraySource": "data.sources",
  "Batch": "objectives",
  "Context": "objectives",
  "DigitsSource": "world",
  "Features": "objectives",
  "FewShotClassifier": "classifier.estimator",
  "FolderSource": "data.sources",
  "TERMS": "objectives",
  "WorldSource": "world",
  "evaluate": "classifier.evaluation",
  "compare": "report.comparison",
  "cross_validate": "classifier.folds",
  "inspect": "checkpoints.inspect",
  "load_config": "config.loading:load",
  "load_model": "checkpoints:load",
  "make_source": "data.sources",
  "make_term": "objectives",
  "register_term": "objectives:register",
  "resolve_config": "config:resolve",
  "run_experiment": "experiments:run",
  "save_model": "checkpoints:save",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  module, _, attribute = _PUBLIC[name].partition(":")
  value = getattr(import_module(f"{__name__}.{module}"), attribute or name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *_PUBLIC})
