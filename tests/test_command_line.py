"""What a person types: every mistake is one line that says what to type instead."""

import signal
import subprocess
import sys
import types

import pytest

import mdtrap_jax
from mdtrap_jax.__main__ import main
from mdtrap_jax.checkpoints import inspect as checkpoint_reports
from mdtrap_jax.config import loading
from tests.paths import ROOT


def say(capsys, *arguments):
  """Exit code, standard output and standard error of a command."""
  try:
    code = main(arguments)
  except SystemExit as stop:
    code = stop.code
  output = capsys.readouterr()
  return code, output.out, output.err


@pytest.mark.parametrize(
  ("arguments", "code", "message"),
  [
    (["--config=configs/demos.py"], 1, "no such file. Did you mean demo?"),
    (["--config=nowhere/at/all.py"], 1, "With the library come backbones, chestx, com"),
    (["--config=demo.py:baseline"], 1, "demo.py has no methods; leave :baseline away"),
    (["--config=chestx:svlra"], 1, "svlra: no such method; give one of"),
    (["--config=configs"], 1, "--config=configs: there is no such file"),
    (["--config=copa:capo"], 1, "--config.method=capo: choose one of ncc, url, copa"),
    (["--config=folder", "--config.shots=5"], 1, "--config.shots: there is no such field. Did you "
     "mean --config.data.shots?"),
    (["--config=folder", "--config.objective.slv.weight=0"], 1, "--config.objective.svl.weight?"),
    (["--config=folder", "--config.variants.vlm.foo=1"], 1, "--config.variants.vlm.foo=1: the "
     "objective has no such term"),
    (["--config=folder", "--config.variants.snapshots.ra=1"], 1, "config.variants.snapshots"),
    (["--config=folder", "--config.data.classes=MEL,NV"], 1, "as in \"('MEL','NV')\""),
    (["--config=folder", "--config.data.shots=0"], 1, "--config.data.shots=0: must be a whole"),
    (["--config=folder", "--config.data.shots=five"], 1, "--config.data.shots=five: must be"),
    (["--config=folder", "--config.data.shots"], 1, "--config.data.shots=True: must be"),
    (["--config=folder", "--config.adapt.evaluate_at=(1,2)"], 1, "must hold 5: a run's accuracy"),
    (["--config=folder", "--config.adapt.evaluate_at=(0,5)"], 1, "must be a whole number from 1"),
    (["--config=folder", "--config.optimizer.b1=1"], 1, "--config.optimizer.b1=1: must be"),
    (["--config=folder", "--config.optimizer.floor=nan"], 1, "--config.optimizer.floor=nan:"),
    (["--config=folder", "--config.seed", "-1"], 1, "--config.seed=-1: must be"),
    (["--config=folder", "--config.data=5"], 1, "this is a section"),
    (["--config=folder", "--config.=5"], 1, "no such field"),
    (["--config=copa", "--config.tasks.ways=5"], 1, "config.tasks.ways is now config.data.ways."),
    (["--config=copa", "--config.seeds=(41,42)"], 1, "give --config.seed= the first"),
    (["--config=folder", "--workdir=az://a/b"], 1, "az://a/b: give a folder of this machine, gs://"),
    (["--config=folder", "--wrkdir=x"], 2, "unknown flag --wrkdir; did you mean --workdir?"),
    (["--config=folder", "--num-processes=2"], 2, "did you mean --num_processes?"),
    (["--config=folder", "--conf.data.shots=2"], 2, "unknown flag --conf.data.shots"),
    (["--config=folder", "data.shots=5"], 2, "unexpected argument 'data.shots=5'"),
    ([], 2, "required: --config"),
  ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, code, message, tmp_path, capsys):
  got, out, err = say(capsys, "run", f"--workdir={tmp_path / 'run'}", *arguments)
  assert (got, out) == (code, "")
  assert err.startswith("error: ")
  assert err.count("\n") == 1
  assert message in err
  assert not (tmp_path / "run").exists()


def test_mistakes_before_a_command(capsys):
  assert say(capsys)[0] == 2
  assert say(capsys, "trian")[0] == 2
  code, _, err = say(capsys, "run", "--config=demo")
  assert (code, err) == (2, "error: --workdir=DIR is missing: where the run's files go.\n")
  code, _, err = say(capsys, "models", "--config.data.shots=5")
  assert (code, err[:40]) == (2, "error: unknown flag --config.data.shots ")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def get_config(:", "own.py, line 1: invalid syntax"),
    ("x = 1", "no function get_config()"),
    ("def get_config():\n  return 1 / 0", "own.py, line 2: ZeroDivisionError: division by zero"),
    ("def get_config():\n  return {}", "must return a ConfigDict"),
    ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
    ("from configs import default\ndef get_config():\n  config = default.get_config()\n"
     "  config.data.shot = 5\n  return config", "Did you mean"),
  ],
)  # fmt: skip
def test_a_config_of_ones_own_that_fails(source, message, tmp_path, capsys):
  path = tmp_path / "own.py"
  path.write_text(source)
  code, _, err = say(capsys, "run", f"--config={path}", f"--workdir={tmp_path}")
  assert (code, err.count("\n")) == (1, 1)
  assert message in err


def test_a_copy_of_a_config_works_anywhere(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text((ROOT / "configs" / "chestx.py").read_text())
  config = loading.load(f"{path}:baseline", [("data.shots", "5"), ("model.name", "~/clip")])
  assert (config.adapt.steps, config.data.shots, config.model.name) == (125, 5, "~/clip")


@pytest.mark.parametrize(
  ("field", "text", "value"),
  [
    ("data.shots", "5", 5),
    ("data.name", "5", "5"),
    ("data.classes", "('MEL', 'NV')", ("MEL", "NV")),
    ("data.template", "a {} from above", "a {} from above"),
    ("data.template", "('a {}', 'the {}')", ("a {}", "the {}")),
    ("data.template", "None", None),
    ("model.random_weights", "true", True),
    ("optimizer.learning_rate", "1e-3", 1e-3),
    ("adapt.steps", "50", 50),
    ("variants", "{'vlm': {'ra': 0.0}}", {"vlm": {"ra": 0.0}}),
    ("variants.vlm.ra", "0", 0),
  ],
)
def test_values_mean_what_the_field_is(field, text, value):
  config = loading.load("folder", [(field, text)])
  for part in field.split("."):
    config = config[part]
  assert (config.to_dict() if field == "variants" else config) == value


@pytest.fixture
def experiment(monkeypatch):
  """Stands in for the experiments: what `run` does is in `replies`, what it got in `given`."""
  fake = types.SimpleNamespace(given=[], replies=lambda: "accuracy 50.00 ± 1.00")

  def run(config, workdir):
    fake.given.append((config, workdir))
    return fake.replies()

  from mdtrap_jax import experiments

  monkeypatch.setattr(experiments, "run", run)
  monkeypatch.setattr("absl.logging.use_absl_handler", lambda: None)
  return fake


def fail_with(error):
  def reply():
    raise error

  return reply


RUN = ("run", "--config=folder", "--workdir=runs/x", "--config.data.shots", "5")


def test_a_run_gets_a_resolved_config(experiment, capsys):
  code, out, err = say(capsys, *RUN, "--config.model.random_weights")
  assert (code, err) == (0, "")
  assert out == "accuracy 50.00 ± 1.00\nwritten to runs/x\n"
  ((config, workdir),) = experiment.given
  assert (config.adapt.steps, config.is_locked, str(workdir)) == (1250, True, "runs/x")
  assert config.model.random_weights is True
  assert say(capsys, "pretrain", "--workdir=runs/y")[0] == 0
  assert experiment.given[-1][0].experiment == "pretrain"


def test_how_a_run_ends(experiment, capsys):
  from mdtrap_jax.run.stop import PreemptedError

  for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 0)):
    experiment.replies = lambda: signal.raise_signal(number)  # noqa: B023
    code, out, err = say(capsys, *RUN)
    assert (code, out, err.count("\n")) == (expected, "", 1)
    assert err.startswith(f"stopped by {number.name};")
  assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
  experiment.replies = fail_with(PreemptedError("SIGTERM"))
  code, out, err = say(capsys, *RUN)
  assert (code, out, err.count("\n")) == (0, "", 1)
  assert "goes on from here" in err
  experiment.replies = fail_with(OSError("no\nroom"))
  assert say(capsys, *RUN) == (1, "", "error: no room\n")
  experiment.replies = fail_with(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"))
  code, _, err = say(capsys, *RUN)
  assert (code, err.count("\n")) == (1, 1)
  assert "config.episodes_per_device" in err
  experiment.replies = fail_with(OSError("no room"))
  with pytest.raises(OSError, match="no room"):
    main([*RUN, "--traceback"])
  experiment.replies = fail_with(TypeError("ours"))  # not the user's to repair
  with pytest.raises(TypeError):
    main(RUN)


def test_one_of_the_processes_flags_alone_is_refused(experiment, capsys):
  code, _, err = say(capsys, *RUN, "--num_processes=2")
  assert (code, err.count("\n")) == (1, 1)
  assert "--coordinator" in err
  assert not experiment.given


def test_help_names_every_field(capsys):
  code, out, _ = say(capsys, "run", "--config=chestx", "--help-config", "--config.data.shots=5")
  assert code == 0
  assert "--config.data.shots=5\n    K, support images of each class\n" in out
  assert say(capsys, "config", "chestx", "--config.data.shots=5") == (0, out, "")
  code, out, _ = say(capsys, "config")
  assert "demo         The embedded default" in out
  code, out, _ = say(capsys, "run", "--help")
  assert code == 0
  for flag in ("--workdir", "--distributed", "--process_id", "--config.data.shots=5"):
    assert flag in out


def test_models_are_listed(capsys):
  code, out, _ = say(capsys, "models")
  assert code == 0
  (line,) = [line for line in out.splitlines() if line.startswith("clip-vit-b16 ")]
  assert " ".join(line.split()) == "clip-vit-b16 clip 224 px 16 px 12 × 768 12 × 512 512"


def test_other_commands_end_in_one_line(tmp_path, capsys):
  code, out, err = say(capsys, "compare", str(tmp_path / "none"))
  assert (code, out, err.count("\n")) == (1, "", 1)
  code, _, err = say(capsys, "prepare", "isik")
  assert (code, err.count("\n")) == (1, 1)
  assert err.startswith(
    "error: prepare isik: choose one of chestx, cropdisease, eurosat, isic, fsl/"
  )
  code, out, _ = say(capsys, "inspect", str(tmp_path / "none"))
  assert code == 1
  assert "unusable" in out
  assert say(capsys, "--version") == (0, f"{mdtrap_jax.__version__}\n", "")


def test_a_terminal_of_ascii_gets_the_table():
  """And importing the package, or its help, is quick: nothing heavy comes along."""
  code = (
    "import sys, mdtrap_jax.__main__ as m\n"
    "m.show_version = lambda options: print('50.00 ± 1.00') or 0\n"
    "m.main(['--version'])\n"
    "heavy = {'jax', 'numpy', 'torch', 'ml_collections', 'transformers'} & set(sys.modules)\n"
    "assert not heavy, heavy\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONIOENCODING": "ascii"},
    capture_output=True, check=False,
  )  # fmt: skip
  assert (done.returncode, done.stdout, done.stderr) == (0, b"50.00 ? 1.00\n", b"")


def test_the_public_list():
  for name in mdtrap_jax.__all__:
    assert getattr(mdtrap_jax, name) is not None
    assert name in dir(mdtrap_jax)
  assert mdtrap_jax.inspect is checkpoint_reports.inspect
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = mdtrap_jax.nothing
