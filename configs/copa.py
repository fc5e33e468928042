"""Few-shot heads on frozen features: NCC, URL, CoPA, with and without adapters, and the baselines.

`--config=configs/copa.py:METHOD` picks a method: ncc, url, copa, copa_transformer, url_tsa or
copa_tsa; knn, ridge, logistic, mahalanobis; with the texts of a vision-language model zero_shot,
tip_adapter, tip_adapter_f, clip_adapter, taskres, lp_plus_plus, clap, prolip; transductive tim,
tim_gd, laplacian_shot (docs/heads.md says what each is). One run goes through all domains and seeds
and ends in one table. `None` means: the published value, which depends on the method and for a few
data sets on the domain.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from . import default


def get_config(method="copa"):
  config = default.common()
  config.experiment = "heads"
  default.add_head(config, method)
  config.seed, config.seeds = 41, 5  # the published table is over seeds 41 to 45
  config.episodes = 600
  # Sources (eurosat, isic, digits, …), NAME=FOLDER for a folder with one subfolder of images per
  # class, world/LOOK for generated images, meta/NAME for Meta-Dataset's records; with
  # data.features, the names of the sets there.
  config.domains = ("isic", "cropdisease", "eurosat", "chestx")  # the data sets
  # Where URL learns ten times slower: mdl (Meta-Dataset's eight training sets), sdl (its
  # ImageNet), names of domains, separated by commas, or "": none.
  config.seen = "mdl"  # domains that the backbone was trained on

  data = config.data
  # fixed, or Meta-Dataset's vary_way_vary_shot, vary_way_5_shot or 5_way_1_shot
  data.protocol = "fixed"  # how large tasks are; fixed: as ways, shots and queries say
  data.shots = 5
  data.records = ""  # of meta/NAME: Meta-Dataset's records, one subfolder per data set
  data.records_split = "test"  # of meta/NAME: whose classes: train, valid or test
  data.features = ""  # a .npz or folder of features made elsewhere; "": compute them
  # For methods with texts, where one domain is a folder, NAME=FOLDER.
  data.class_names = ()  # prompt names of its classes, sorted by folder; (): the folders' own
  # Of methods with texts. None: the model family's; of several, the embeddings are averaged
  data.template = placeholder(object)  # the prompt or a tuple of prompts, {} the class name

  config.model.name = "resnet18"  # or any VLM: miniature, hub name, named size, folder or file

  config.diagnosis = diagnosis = ConfigDict()
  diagnosis.tasks = 0  # tasks of each domain in which the gap is shifted by hand and drawn
  diagnosis.distances = (-2.0, 2.0, 41)  # first gap, last gap, number of gaps
  return config
