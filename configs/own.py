r"""Your own networks: the recipe of Table 1 for any teacher and student of small images.

docs/your-own-teacher.md describes how to prepare them.

    fastdfkd run own:fast5-short --workdir DIR \
        teacher.graph=TEACHER student.graph=STUDENT data.source=folder:IMAGES

The variant is `:fastK` with K of 2, 5 or 10, then any protocol of `configs/cifar10.py`. Either network may be one of
ours instead (`config.teacher.checkpoint`, `config.student.arch`). Data are optional and used only for evaluation.
"""

from fastdfkd_jax.configs import cifar, default
from fastdfkd_jax.errors import UserError


def get_config(variant=None):
    """Returns the config of a variant; the default is k = 5."""
    steps, *protocols = (variant or "fast5").split("-")
    known = [f"fast{k}" for k in cifar.STEPS]
    if steps not in known or set(protocols) - cifar.PROTOCOLS.keys():
        raise UserError(
            f"unknown variant {variant!r}: expected one of {', '.join(known)}, alone or with -PROTOCOL, one of "
            f"{', '.join(cifar.PROTOCOLS)}"
        )
    config = default.get_config()
    cifar.apply(config, int(steps.removeprefix("fast")), protocols)
    return config
