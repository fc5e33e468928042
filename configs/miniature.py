"""Pretraining of the packaged miniature, about 35 minutes on two CPU cores.

`mdtrap pretrain --workdir=runs/miniature`.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.experiment = "pretrain"
  config.seed = 0  # of the start, and of the images and captions of each step
  config.steps = 3000  # of training
  config.batch_size = 128  # pairs of image and caption in a step, each drawn afresh

  config.model = model = ConfigDict()
  model.width = 128  # of both encoders
  model.image_depth = 4  # blocks
  model.text_depth = 3  # blocks
  model.heads = 4  # of attention
  model.mlp_width = 512  # of the two dense layers of a block
  model.embed_dim = 128  # D
  model.patch_size = 8  # pixels: 37 tokens
  model.activation = "quick_gelu"  # between those layers

  config.learning_rate = 1.5e-3  # at the end of the warm-up, then a cosine to 0
  config.warmup_steps = 200  # in which the learning rate rises from 0
  config.weight_decay = 0.05  # of matrices, decoupled
  config.b1 = 0.9  # Adam's decay of the mean gradient
  config.b2 = 0.98  # Adam's decay of the mean squared gradient
  config.clip_norm = 1.0  # of the whole gradient
  config.max_scale = 100.0  # of the learned logit scale

  config.evaluate_every = 500  # steps between zero-shot evaluations on held-out scenes
  config.evaluate_episodes = 200  # of each evaluation
  return config
