"""Pretraining of the packaged miniature, about 35 minutes on two CPU cores.

`python -m mdtrap_jax.world.pretrain --config=configs/miniature.py --workdir=runs/miniature`.
"""

from ml_collections import ConfigDict


def get_config():
  config = ConfigDict()
  config.seed = 0
  config.steps = 3000
  config.batch_size = 128  # pairs of image and caption in a step, each drawn afresh
  config.segment = 20  # steps in one compiled call, after which progress is shown

  config.model = model = ConfigDict()
  model.width = 128  # of both encoders
  model.image_depth = 4  # blocks
  model.text_depth = 3
  model.heads = 4
  model.mlp_width = 512
  model.embed_dim = 128  # D
  model.patch_size = 8  # pixels: 37 tokens
  model.activation = "quick_gelu"

  config.learning_rate = 1.5e-3  # at the end of the warm-up, then a cosine to 0
  config.warmup_steps = 200
  config.weight_decay = 0.05  # of matrices, decoupled
  config.b1 = 0.9
  config.b2 = 0.98
  config.clip_norm = 1.0  # of the whole gradient
  config.max_scale = 100.0  # of the learned logit scale

  config.evaluate_every = 500  # steps between zero-shot evaluations on held-out scenes
  config.evaluate_episodes = 200
  config.checkpoint_every = 200  # steps, multiples of `segment`
  return config
