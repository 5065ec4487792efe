"""The recipe of the scripts in CMI's repository, which produced the DAFL, ZSKT and DFQ figures of Table 1.

The repository's README has exactly the paper's CIFAR-10 figures. The scripts do not follow the official codes. They run
200 epochs of 400 student steps of 256 images, with one generator architecture for all methods and a constant learning
rate for it (METHOD sections 1.7, 2, 8).
"""

from ml_collections import ConfigDict


def generative(config: ConfigDict, student_steps: int, latent_dim: int = 256) -> None:
    """Sets the common part of the generative scripts: large generator, Adam 1e-3 (0.5, 0.999), KD at T = 1."""
    section = config[config.method.name]
    section.generator, section.latent_dim, section.width = "large", latent_dim, 64
    section.lr, section.b1, section.cosine, section.milestones, section.clip_norm = 1e-3, 0.5, False, (), 0.0
    section.student_steps, section.student_images, section.student_mode = student_steps, "fresh", "eval"
    config.calls, config.warmup_calls = 200, 0
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.temperature = 400, 1.0
    student(config)


def student(config: ConfigDict) -> None:
    """Sets SGD 0.1 with momentum 0.9 and weight decay 1e-4; the rate falls to 0 as a cosine (METHOD 1.8)."""
    kd = config.kd
    kd.optimizer, kd.lr, kd.final_lr, kd.milestones = "sgd", 0.1, 0.0, ()
    kd.momentum, kd.nesterov, kd.weight_decay, kd.clip_norm = 0.9, False, 1e-4, 0.0
