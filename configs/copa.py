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
  config.episodes_per_device = 0  # adapted at once on each device; 0: as its memory allows
  # Data sets: sources (eurosat, isic, digits, …), NAME=FOLDER for a folder with one subfolder of
  # images per class, world/LOOK for generated images, meta/NAME for Meta-Dataset's records; with
  # features.path, the names of the sets there.
  config.domains = ("isic", "cropdisease", "eurosat", "chestx")
  # Domains that the backbone was trained on, where URL learns ten times slower: mdl (Meta-Dataset's
  # eight training sets), sdl (its ImageNet), names of domains, separated by commas, or "": none.
  config.seen = "mdl"

  config.data = data = ConfigDict()
  data.data_dir = ""  # where TFDS data sets were prepared; "": TFDS's default
  data.split = "train"  # a TFDS split; the four targets have this one only
  data.records = ""  # of meta/NAME: Meta-Dataset's records, one subfolder per data set
  data.records_split = "test"  # of meta/NAME: whose classes: train, valid or test
  data.severity = 1.0  # of world/LOOK: how far from the source's look, 0 to 1
  data.images_per_class = 40  # of world/LOOK: images to draw from
  data.resize = "squash"  # to a square; "crop": the short side is resized, the center taken
  data.unreadable = "error"  # an image that cannot be read: "error", or "skip" with a warning
  data.classes = ()  # names of the classes to keep; (): all
  data.threads = 4  # that decode images
  data.cache_dir = ""  # keep computed features here; "": compute them in every run

  config.features = features = ConfigDict()
  features.path = ""  # a .npz or folder of features made elsewhere; "": compute them
  features.model = "resnet18"  # or any VLM: miniature, hub name, named size, folder or file
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
