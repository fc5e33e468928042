"""Every field there is, with the paper's values; the other files only override.

`--config=configs/NAME.py:METHOD` picks a method of `METHODS`; any field can be set on the
command line, as `--config.data.shots=5`. `None` means: the paper's value, which depends on
other fields.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

METHODS = {
  "svl_ra": {},  # the paper's method, as below
  "svl": {"objective.ra.weight": 0.0},
  "ra": {"objective.svl.weight": 0.0},
  # Cross-entropy only, all views in each step: what the others are compared with.
  "vlm": {"objective.svl.weight": 0.0, "objective.ra.weight": 0.0},
  # The trap: visual learning strengthened instead of suppressed.
  "visual": {
    "objective.svl.weight": 0.0,
    "objective.ra.weight": 0.0,
    "objective.visual.weight": 0.1,
  },
  # The reference's plain baseline: batches of 25 views, and as many steps whatever the shots.
  "baseline": {
    "objective.svl.weight": 0.0,
    "objective.ra.weight": 0.0,
    "adapt.batch_size": 25,
    "adapt.steps": 250,
  },
}


def common():
  """The fields of every experiment that adapts to labeled images."""
  config = ConfigDict()
  config.experiment = "finetune"  # or heads, study, pretrain: which kind this config is of
  config.seed = 0  # the first seed, of data, views, draws and start
  config.seeds = 1  # how many: seed, seed + 1, …; each draws its own tasks
  # None: 800 for 1-shot, 400 otherwise
  config.episodes = placeholder(int)  # tasks of each domain and seed
  config.episodes_per_device = 0  # adapted at once on each device; 0: as its memory allows
  config.weight_shards = 1  # devices that hold one copy of the weights between them

  config.data = data = ConfigDict()
  data.severity = 1.0  # of the generated world: how far from the source's look, 0 to 1
  data.images_per_class = 40  # of the generated world: images to draw from
  data.data_dir = ""  # where TFDS data sets were prepared; "": TFDS's default
  data.split = "train"  # a TFDS split; the four targets have this one only
  data.files = ""  # a text file that lists the images to draw from, one a line; "": all
  data.classes = ()  # names of the classes to keep; (): all
  data.small_classes = "error"  # a class with too few images: "error" or "drop"
  data.unreadable = "error"  # an image that cannot be read: "error", or "skip" with a warning
  data.ways = 5  # C, classes in an episode
  data.shots = 1  # K, support images of each class
  data.queries = 15  # Q, query images of each class
  # "squash": both sides alike, as the papers do it; "crop": the short side, then the center;
  # "family": as the model family's originals do it (CLIP crops, the others squash).
  data.resize = "squash"  # how an image becomes the model's square
  data.interpolation = "bilinear"  # by which filter, or "bicubic"; resize="family" has its own
  data.background = (255, 255, 255)  # color behind transparent pixels
  data.window = ()  # (low, high): values of 16-bit images that become black and white; (): as used
  data.max_pixels = 0  # of one image, so that none fills the memory; 0: Pillow's own limit
  data.threads = 4  # that decode images ahead of the device
  data.cache_dir = ""  # keep resized images, or features, here; "": no cache

  config.model = model = ConfigDict()
  model.name = "openai/clip-vit-base-patch16"  # hub name, named size, local folder or file
  model.checkpoint = ""  # of the ResNet-18 (configs/copa.py): URL's model_best.pth.tar
  model.random_weights = False  # of a named size; accuracy then means nothing
  model.dtype = "auto"  # float32, bfloat16, or auto: float32 on CPUs, bfloat16 elsewhere
  model.batch_size = 64  # images or prompts encoded at once, outside of training
  return config


def get_config(method="svl_ra"):
  config = common()
  data = config.data
  data.name = "folder"  # folder, eurosat, cropdisease, isic, chestx, world or digits
  data.path = ""  # of data.name=folder: one subfolder of images per class
  data.class_names = ()  # prompt names of those folders, sorted; (): the folders' own names
  data.domain = "radiograph"  # of data.name=world: source, radiograph, satellite, …
  # None: the model family's; of several, the texts' embeddings are averaged
  data.template = placeholder(object)  # the prompt or a tuple of prompts, {} the class name

  # Term weights to compare on the same episodes in one program, as in
  # {"vlm": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}}; each gets a subdirectory. {}: one run.
  config.variants = ConfigDict()

  config.lora = lora = ConfigDict()
  lora.encoder = "vision"  # which encoder is tuned: vision, text or both
  lora.position = "all"  # bottom, mid, up, half-bottom, half-up, top3, or numbers as "0,1,2"
  lora.projections = ("q", "k", "v")  # any of q, k, v and out
  lora.rank = 16  # r, of the factors
  lora.alpha = 8.0  # of the scale
  lora.scale = "sqrt"  # alpha / sqrt(rank), or "linear": alpha / rank
  lora.dropout = 0.25  # of the input of the factors

  # A term is on from its window's first to its last fifth of the steps; weight 0 removes it.
  config.objective = objective = ConfigDict()
  objective.vlm = ConfigDict({"weight": 1.0, "window": (0, 5)})  # cross-entropy with the texts
  objective.visual = ConfigDict({"weight": 0.0, "window": (0, 3)})  # with the own prototypes
  # Suppressed visual learning: with random prototypes.
  # None: 0.1, or 0.001 where the text encoder alone is tuned.
  objective.svl = ConfigDict({"weight": placeholder(float), "window": (0, 3)})
  objective.ra = ConfigDict({"weight": 3.0, "window": (0, 3)})  # relation alignment
  objective.symmetric = ConfigDict({"weight": 0.0, "window": (0, 5)})  # CoPA's, to the texts
  objective.ra.divergence = "cosine"  # as the reference computes it, or "softmax" (the paper)

  config.adapt = adapt = ConfigDict()
  adapt.views = 5  # V, of each support image
  adapt.steps_per_shot = 250  # the paper's; 125 on ChestX
  adapt.steps = placeholder(int)  # T; None: steps_per_shot · shots
  adapt.batch_size = 0  # views per step; 0: all
  adapt.chunk = 0  # of them encoded at once, to save memory; 0: all, or as many as fit

  config.optimizer = optimizer = ConfigDict()
  optimizer.learning_rate = 2e-4  # at step 0, per step
  optimizer.floor = 1e-6  # of the cosine schedule
  optimizer.periods = 8.0  # the schedule's half wave, in lengths of the whole run
  optimizer.weight_decay = 1e-2  # decoupled, as AdamW has it
  optimizer.b1 = 0.9  # Adam's decay of the mean gradient
  optimizer.b2 = 0.999  # Adam's decay of the mean squared gradient
  optimizer.eps = 1e-8  # Adam's, beside the root of that

  if method not in METHODS:
    raise ValueError(f"--config=…:{method}: no such method; choose from {sorted(METHODS)}.")
  config.update_from_flattened_dict(METHODS[method])
  return config
