"""Few-shot heads on frozen features: NCC, URL, CoPA, with and without adapters.

`--config=configs/copa.py:METHOD` picks a method of `METHODS`. One run goes through all domains
and seeds and ends in one table. `None` means: the published value, which depends on the method
and for a few data sets on the domain.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

METHODS = ("copa", "ncc", "url", "copa_transformer", "url_tsa", "copa_tsa")


def get_config(method="copa"):
  if method not in METHODS:
    raise ValueError(f"--config=…:{method}: no such method; choose from {sorted(METHODS)}.")
  config = ConfigDict()
  config.experiment = "heads"
  config.method = method
  config.seeds = (41, 42, 43, 44, 45)  # each draws its own tasks; the table is over all
  config.episodes = 600  # tasks of each domain and seed
  config.episodes_per_device = 0  # adapted at once on each device; 0: found from its memory
  # Data sets: names of features in a file, names of sources (eurosat, isic, …), or NAME=FOLDER
  # for a folder with one subfolder of images per class.
  config.domains = ("isic", "cropdisease", "eurosat", "chestx")

  config.data = data = ConfigDict()
  data.data_dir = ""  # where TFDS data sets were prepared; "": TFDS's default
  data.split = "train"  # a TFDS split; the four targets have this one only
  data.classes = ()  # names of the classes to keep; (): all
  data.threads = 4  # that decode images
  data.cache_dir = ""  # keep computed features here; "": compute them in every run

  config.features = features = ConfigDict()
  features.path = ""  # a .npz or folder of features made elsewhere; "": compute them
  features.model = "resnet18"  # or any VLM: hub name, named size, local folder or file
  features.checkpoint = ""  # of the ResNet-18: URL's model_best.pth.tar
  features.random_weights = False  # accuracy then means little
  features.batch_size = 64  # images encoded at once

  config.tasks = tasks = ConfigDict()
  # fixed, or Meta-Dataset's vary_way_vary_shot, vary_way_5_shot or 5_way_1_shot
  tasks.protocol = "fixed"
  tasks.ways = 5  # C of fixed tasks
  tasks.shots = 5  # K of fixed tasks
  tasks.queries = 15  # Q of fixed tasks, for each class

  config.head = head = ConfigDict()
  head.steps = placeholder(int)  # T
  head.learning_rate = placeholder(float)  # per step
  head.l2 = placeholder(float)  # of CoPA; added to the gradient
  head.adapter_ratio = placeholder(float)  # learning rate of the adapters, times the head's

  config.diagnosis = diagnosis = ConfigDict()
  diagnosis.tasks = 0  # tasks of each domain in which the gap is shifted by hand and drawn
  diagnosis.distances = (-2.0, 2.0, 41)  # first gap, last gap, number of gaps
  return config
