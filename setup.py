"""Where the packages lie; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["mdtrap_jax", "mdtrap_jax.*"]), "mdtrap_jax.configs"],
  package_dir={"mdtrap_jax.configs": "configs"},
)
