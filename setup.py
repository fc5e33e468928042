"""Package metadata; `pip install -e .` or `pip install -e .[test]`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

INSTALL = [
  "absl-py>=2.1",
  "array-record>=0.5",
  "flax>=0.10",
  "grain>=0.2.10",
  "huggingface_hub>=0.30",
  "importlib_resources>=6.0",  # tensorflow-datasets uses it without saying so
  "jax>=0.7",
  "matplotlib>=3.8",
  "ml_collections>=1.0",
  "numpy>=1.26",
  "optax>=0.2.5",
  "orbax-checkpoint>=0.11",
  "pillow>=11.3",
  "safetensors>=0.4.5",
  "tensorboardX>=2.6",
  "tensorflow-datasets>=4.9.9",
  "tqdm>=4.66",
  "transformers>=4.50",
]
EXTRAS = {
  "benchmarks": ["peft>=0.15", "torch==2.13.0"],
  "digits": ["scikit-learn>=1.4"],
  "test": [
    "hypothesis>=6.100",
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "ruff>=0.9",
    "scikit-learn>=1.4",
    "torch==2.13.0",
  ],
}

ROOT = Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (ROOT / "mdtrap_jax/__init__.py").read_text(encoding="utf-8")
)[1]

setup(
  name="mdtrap_jax",
  version=VERSION,
  description="Cross-domain few-shot learning with vision-language models in JAX.",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["mdtrap_jax", "mdtrap_jax.*"]),
  package_data={"mdtrap_jax": ["weights/**/*"]},
  install_requires=INSTALL,
  extras_require=EXTRAS,
)
