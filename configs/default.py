"""Every field there is, with the paper's values; the other files only override.

`--config=configs/NAME.py:METHOD` picks a method of `METHODS`, `:TUNE` what it trains, of `TUNES`,
and `:METHOD,TUNE` both; any field can be set on the command line, as `--config.data.shots=5`.
`None` means: the paper's value, which depends on other fields.
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

# What is trained, with the hyper-parameters of its own paper.
TUNES = {
  "lora": {},  # low-rank adapters by the CVPR 2026 paper, as below
  # S.-Y. Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024: with the settings of
  # the LoRA beside it, as the authors have it.
  "dora": {"lora.dora": True},
  # F. Meng et al., "PiSSA", NeurIPS 2024: alpha = r, so that the scale is 1, and no dropout.
  "pissa": {"lora.start": "pissa", "lora.alpha": 16.0, "lora.scale": "linear", "lora.dropout": 0.0},
  # K. Zhou et al., "Learning to prompt for vision-language models", IJCV 2022 (CoOp): SGD in its
  # code's setting, a cosine to 0 after one epoch at 1e-5. An epoch of so few images is one step:
  # 50 a shot here; CoOp's own are 50 at 1 shot, 100 at 2 to 4 and 200 from 8 (set adapt.steps).
  "coop": {
    "tune": "coop",
    "adapt.steps_per_shot": 50,
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 5e-4,
    "optimizer.floor": 0.0,
    "optimizer.periods": 1.0,
    "optimizer.warmup_steps": 1,
  },
  # M. U. Khattak et al., "MaPLe: multi-modal prompt learning", CVPR 2023: SGD as in its code.
  # Its 5 epochs of batches of 4 from all classes do not carry over to episodes: the steps are
  # those of the CVPR 2026 paper.
  "maple": {
    "tune": "maple",
    "optimizer.name": "sgd",
    "optimizer.learning_rate": 3.5e-3,
    "optimizer.weight_decay": 5e-4,
    "optimizer.floor": 0.0,
    "optimizer.periods": 1.0,
    "optimizer.warmup_steps": 1,
  },
  # D. Wang et al., "Tent", ICLR 2021, tunes norms at 1e-3 by Adam, without decay.
  "layernorm": {
    "tune": "layernorm",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
  },
  # E. Ben-Zaken et al., "BitFit", ACL 2022, tries rates from 1e-4 to 1e-3.
  "bias": {"tune": "bias", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0},
}


def common():
  """The fields of every experiment that adapts to labeled images."""
  config = ConfigDict()
  config.experiment = "finetune"  # or heads, study, pretrain: which kind this config is of
  config.seed = 0  # the first seed, of data, views, draws and start
  config.seeds = 1  # how many: seed, seed + 1, …; each draws its own tasks
  # None: 800 for 1-shot, 400 otherwise
  config.episodes = placeholder(int)  # tasks of each domain and seed
  config.predictions = False  # keep what is said of every query image, for `mdtrap report`
  config.episodes_per_device = 0  # adapted at once on each device; 0: as its memory allows
  config.weight_shards = 1  # devices that hold one copy of the weights between them

  config.data = data = ConfigDict()
  data.severity = 1.0  # of the generated world: how far from the source's look, 0 to 1
  data.images_per_class = 40  # of the generated world: images to draw from
  data.data_dir = ""  # where TFDS data sets were prepared; "": TFDS's default
  data.split = "train"  # of the four targets the only one; of fsl also val or test
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
  # float32, bfloat16, float16 with loss scaling, or auto: float32 on CPUs, bfloat16 elsewhere
  model.dtype = "auto"
  model.batch_size = 64  # images or prompts encoded at once, outside of training
  return config


def add_head(config, method):
  """The fields of a method on frozen features, `None` where the published value is meant."""
  config.method = method  # a head or baseline, of those that docs/heads.md lists
  config.head = head = ConfigDict()
  head.steps = placeholder(int)  # T
  head.learning_rate = placeholder(float)  # per step
  # Of CoPA, CLIP-Adapter and TaskRes: added to the gradient; of ridge, logistic and mahalanobis:
  # the regularizer's weight; of TIM: the support set's weight.
  head.l2 = placeholder(float)  # how much parameters are held down
  head.adapter_ratio = placeholder(float)  # learning rate of the adapters, times the head's
  # Of Tip-Adapter, CLIP-Adapter and TaskRes: the residual's ratio; of TIM: the weight of certainty;
  # of LaplacianShot: λ.
  head.alpha = placeholder(float)  # how much is added to what the frozen model says
  head.beta = placeholder(float)  # sharpness of Tip-Adapter; temperature of TIM
  head.neighbors = placeholder(int)  # of knn, and of each query in laplacian_shot
  head.prototypes = placeholder(str)  # of ncc, url, copa: mean, max or sum of a class's features
  head.distance = placeholder(str)  # of ncc and url: cosine or l2


def get_config(row="svl_ra"):
  methods = [name for name in row.split(",") if name in METHODS]
  tunes = [name for name in row.split(",") if name in TUNES]
  if len(methods) > 1 or len(tunes) > 1 or len(methods + tunes) < len(row.split(",")):
    raise ValueError(
      f"--config=…:{row}: no such method; give one of {sorted(METHODS)}, of {sorted(TUNES)}, or "
      "METHOD,TUNE."
    )
  config = common()
  data = config.data
  data.name = "folder"  # folder, eurosat, cropdisease, isic, chestx, fsl, world or digits
  data.path = ""  # of folder: one subfolder of images per class; of fsl: the unpacked release
  data.split_file = ""  # of fsl: CoOp's split_zhou_….json, if it is not in data.path
  data.class_names = ()  # prompt names of those folders, sorted; (): the folders' own names
  data.domain = "radiograph"  # of world: source, radiograph, …; of fsl: oxford_pets, dtd, …
  # None: the model family's; of several, the texts' embeddings are averaged
  data.template = placeholder(object)  # the prompt or a tuple of prompts, {} the class name

  # Term weights to compare on the same episodes in one program, as in
  # {"vlm": {"svl": 0.0, "ra": 0.0}, "svl_ra": {}}; each gets a subdirectory. {}: one run.
  config.variants = ConfigDict()

  # What is trained, with a section of its own here: lora, coop, maple, layernorm or bias.
  config.tune = "lora"
  config.lora = lora = ConfigDict()
  lora.encoder = "vision"  # which encoder is tuned: vision, text or both
  lora.position = "all"  # bottom, mid, up, half-bottom, half-up, top3, or numbers as "0,1,2"
  lora.projections = ("q", "k", "v")  # any of q, k, v, out, and fc1, fc2 of the MLP
  lora.rank = 16  # r, of the factors
  lora.alpha = 8.0  # of the scale
  lora.scale = "sqrt"  # alpha / sqrt(rank), or "linear": alpha / rank
  lora.dropout = 0.25  # of the input of the factors
  lora.dora = False  # DoRA: learn the lengths of the adapted weights' columns too
  lora.start = "zero"  # or "pissa": at the weights' largest singular values

  config.coop = coop = ConfigDict()
  # None: 16, or one for each of the words
  coop.tokens = placeholder(int)  # M, learned context tokens in front of the class names
  coop.words = ""  # that the context starts from, as "a photo of a"; "": a random start
  coop.per_class = False  # whether each class of an episode learns a context of its own

  config.maple = maple = ConfigDict()
  maple.depth = 9  # blocks of both encoders with learned tokens
  maple.tokens = 2  # n, learned in each of them
  maple.words = "a photo of a"  # whose first tokens the text's start from; "": a random start

  config.layernorm = layernorm = ConfigDict()
  layernorm.encoder = "vision"  # which encoder's layer norms are tuned: vision, text or both
  layernorm.position = "all"  # both ends too; or of blocks as lora.position has it

  config.bias = bias = ConfigDict()
  bias.encoder = "vision"  # which encoder's biases are tuned: vision, text or both
  bias.position = "all"  # both ends too; or of blocks as lora.position has it

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
  # None: steps_per_shot · shots, or on all classes what adapt.epochs come to
  adapt.steps = placeholder(int)  # T
  adapt.batch_size = 0  # views per step; 0: all
  adapt.chunk = 0  # of them encoded at once, to save memory; 0: all, or as many as fit
  adapt.evaluate_at = (1, 2, 3, 4, 5)  # fifths of the steps after which queries are classified
  adapt.diagnose = False  # measure gap, best shift and nearest class means at each of those, too

  config.optimizer = optimizer = ConfigDict()
  optimizer.name = "adamw"  # or sgd
  optimizer.learning_rate = 2e-4  # at step 0, per step
  optimizer.floor = 1e-6  # of the cosine schedule
  optimizer.periods = 8.0  # the schedule's half wave, in lengths of the whole run
  optimizer.weight_decay = 1e-2  # decoupled, as AdamW has it; SGD adds it to the gradient
  optimizer.b1 = 0.9  # Adam's decay of the mean gradient
  optimizer.b2 = 0.999  # Adam's decay of the mean squared gradient
  optimizer.eps = 1e-8  # Adam's, beside the root of that
  optimizer.momentum = 0.9  # of SGD
  optimizer.warmup_steps = 0  # before the schedule starts, at warmup_rate
  optimizer.warmup_rate = 1e-5  # a constant learning rate

  for name in tunes:
    config.update_from_flattened_dict(TUNES[name])
  for name in methods:
    config.update_from_flattened_dict(METHODS[name])
  return config
