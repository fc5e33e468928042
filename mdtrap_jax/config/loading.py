"""Config files: where they are, what `--config.FIELD=VALUE` does to them, and their comments."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import io
import sys
import tokenize
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_collections

from mdtrap_jax import config as settings
from mdtrap_jax.config.fields import complaint, unknown

WORDS = {"true": True, "false": False, "none": None}


def folder() -> Path:
  """Where the configs lie that come with the library: beside the package, or in a wheel inside."""
  package = Path(__file__).parents[1]
  inside = package / "configs"
  return inside if inside.is_dir() else package.parent / "configs"


def packaged() -> dict[str, Path]:
  """The configs that come with the library, by name."""
  return {path.stem: path for path in sorted(folder().glob("[!_]*.py"))}


def find(config: str) -> tuple[Path, str]:
  """The file and the METHOD of `FILE`, `FILE:METHOD`, `NAME` or `NAME:METHOD`.

  Raises:
    FileNotFoundError: there is no such file; names like it are suggested.
  """
  name, _, method = (config, "", "") if Path(config).is_file() else config.partition(":")
  path = Path(name).expanduser()
  if path.is_file() and path.suffix:
    return path, method
  known = packaged()
  if path.parent in (Path(), Path("configs")) and path.suffix in ("", ".py") and path.stem in known:
    return known[path.stem], method
  close = difflib.get_close_matches(path.stem, known, 1, 0.5)
  raise FileNotFoundError(
    f"--config={config}: there is no such file.{f' Did you mean {close[0]}?' if close else ''} "
    f"With the library come {', '.join(known)}."
  )


def load(config: str, overrides: Iterable[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
  """A config as written and overridden, not yet resolved.

  Args:
    config: `FILE[:METHOD]`, or the name of a config that comes with the library. The file has a
      function `get_config()` or `get_config(METHOD)`.
    overrides: dotted fields and their values, as typed.

  Raises:
    OSError, ValueError: no such file, method or field, or the file fails; one line says where.
  """
  path, method = find(config)
  result = _get_config(path, config, method)
  for field, text in overrides:
    override(result, field, text)
  return result


def _get_config(path: Path, config: str, method: str) -> ml_collections.ConfigDict:
  _provide_configs()
  # Under this name, `from . import default` is the library's in a copy of one of its files too.
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  if spec is None:
    raise ValueError(f"--config={config}: a config is a Python file.")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if get_config is None:
      raise ValueError(f"--config={config}: the file has no function get_config().")
    if method and not inspect.signature(get_config).parameters:
      raise ValueError(f"--config={config}: {path.name} has no methods; leave :{method} away.")
    result = get_config(method) if method else get_config()
  except ValueError:
    raise
  except SyntaxError as error:
    raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    where = f"{path}, line {lines[-1]}" if lines else str(path)
    raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
  if not isinstance(result, ml_collections.ConfigDict):
    raise ValueError(f"--config={config}: get_config() must return a ConfigDict.")
  return result


def _provide_configs() -> None:
  """`from configs import default` means the library's, in a file of one's own anywhere.

  A package `configs` of the user's is kept, and goes first.
  """
  path = str(folder())
  try:
    package = importlib.import_module("configs")
  except ImportError:
    package = None
  if not hasattr(package, "__path__"):
    spec = importlib.util.spec_from_file_location(
      "configs", folder() / "__init__.py", submodule_search_locations=[path]
    )
    package = sys.modules["configs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
  elif path not in package.__path__:
    package.__path__.append(path)


def override(config: ml_collections.ConfigDict, field: str, text: str) -> None:
  """Sets one field as typed on the command line; `settings.resolve` says what it must be.

  Raises:
    ValueError: there is no such field; the one that was meant is suggested.
  """
  *sections, name = field.split(".")
  section, made = config, sections[:1] == ["variants"] and "variants" in config
  for part in sections:
    if made and isinstance(section, ml_collections.ConfigDict) and part not in section:
      with section.unlocked():
        section[part] = ml_collections.ConfigDict()
    section = section.get(part) if isinstance(section, ml_collections.ConfigDict) else None
  if not isinstance(section, ml_collections.ConfigDict) or not (name in section or made):
    raise unknown(field, [known for known, _ in settings.flatten(config)])
  value = parse(text, name in section and section[name])
  if name in section and isinstance(section[name], ml_collections.ConfigDict):
    if not isinstance(value, dict):
      inner = f"--config.{field}.{next(iter(section[name]), 'NAME')}="
      raise complaint(field, text, f"this is a section; give one of its fields, such as {inner}")
    value = ml_collections.ConfigDict(value)
  settings.put(config, field, value)


def parse(text: str, current: Any = None) -> Any:
  """What a value on the command line means beside the field's current one.

  A field of text takes it as it is; for others it is a Python literal. What is none stays text,
  so that the field's rule refuses it by name.
  """
  if isinstance(current, str):
    return text
  if text.strip().lower() in WORDS:
    return WORDS[text.strip().lower()]
  try:
    return ast.literal_eval(text.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return text


def purpose(path: Path) -> str:
  """The first line of a config's docstring."""
  return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def fields(config: str, overrides: Iterable[tuple[str, str]] = ()) -> list[tuple[str, Any, str]]:
  """Every field of a config: dotted name, value and what its comment says.

  Comments stand behind the line that sets a field or above it, in the file itself or in those of
  the library's that it imports. Takes and raises what `load` does.
  """
  path, _ = find(config)
  comments = {}
  for source in (folder() / "default.py", *_imported(path), path):
    comments |= _comments(source)
  config = load(config, overrides)
  rows = dict(settings.flatten(config))
  if "variants" in config and not config.variants:
    rows["variants"] = {}
  return [(name, value, _comment(comments, name)) for name, value in rows.items()]


def _imported(path: Path) -> list[Path]:
  """The library's configs that a file is made from, by `from . import NAME` or `from configs …`."""
  known, names = packaged(), []
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.ImportFrom) and (node.module == "configs" or node.level):
      names += [alias.name for alias in node.names]
  return [known[name] for name in names if name in known]


def _comment(comments: dict[str, str], name: str) -> str:
  """Of the field, or of the section it is set with."""
  while name and name not in comments:
    name = name.rpartition(".")[0]
  return comments.get(name, "")


def _comments(path: Path) -> dict[str, str]:
  """Comments of a file by the field they belong to."""
  source = path.read_text(encoding="utf-8")
  found = {
    token.start[0]: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  alone = {number for number, line in enumerate(source.splitlines(), 1) if line.lstrip()[:1] == "#"}
  names, comments = {"config": ""}, {}  # variables of the file, by the section they are
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.Assign):
      continue
    above, first = [], node.lineno - 1
    while first in alone:
      above.insert(0, found[first])
      first -= 1
    text = "; ".join(filter(None, [found.get(node.end_lineno, ""), " ".join(above)]))
    fields = [name for target in node.targets for name in _targets(target, names)]
    names |= {t.id: fields[0] for t in node.targets if isinstance(t, ast.Name) and fields}
    if isinstance(node.targets[0], ast.Name) and (names_of := list(_targets(node.value, names))):
      names[node.targets[0].id] = names_of[0]  # as in `data = config.data`
    if text:
      comments |= dict.fromkeys(fields, text)
  return comments


def _targets(node: ast.AST, names: dict[str, str]) -> Iterable[str]:
  """The dotted fields that an expression such as `data.shots` or a tuple of them names."""
  if isinstance(node, ast.Tuple):
    for item in node.elts:
      yield from _targets(item, names)
  parts = []
  while isinstance(node, ast.Attribute):
    parts.insert(0, node.attr)
    node = node.value
  if parts and isinstance(node, ast.Name) and node.id in names:
    yield ".".join(filter(None, [names[node.id], *parts]))
