"""CMI, contrastive model inversion, on CIFAR: a generator trained from scratch for every batch (METHOD 1.5).

    fastdfkd run cmi:cifar10-wrn40_2-wrn16_1 --workdir DIR \
        teacher.checkpoint=cifar10_wrn40_2.pth

This is the script of FastDFKD's code, with 200 steps where the row of its tables says 500. `:dataset-teacher-student`,
then one of CMI's own recipes (METHOD sections 2 and 8), then `-short` or `-smoke`:
`-scratch` begins without images; published about 88.8 % on CIFAR-10 for wrn40_2-wrn16_1.
`-adversarial` begins with 50,000 images, `pool.initial=FOLDER`, that were inverted before (for instance by
`-scratch` with `mode=synthesize inversion.adversarial_weight=0`). This is what the 90.01 % in Table 1
of the paper comes from. The 57.91 % on CIFAR-100 there have no recorded recipe.

The bank of features is 1.8 GB for WRN-40-2, in memory and in every checkpoint (`dry_run=true` tells what is
held); for ResNet-34 the released code compares stages rather than BatchNorms, `cmi.features=blocks`. The
few-step rows of Table 4 are `cmi.num_steps=2`, 5 and 10; published for CIFAR-100 14.62, 20.08 and 32.43 %.
"""

from fastdfkd_jax.configs import cifar, cmi_scripts


def published(config):
    """200 calls of 256 images, 400 KD steps after each, rate 0.1."""
    config.method.name = "cmi"
    config.calls, config.warmup_calls = 200, 0
    config.synthesis_batch = config.kd.batch = 256
    config.kd.steps_per_call, config.kd.lr, config.kd.final_lr = 400, 0.1, 2e-4
    config.cmi.num_steps, config.cmi.lr = 200, 1e-3
    config.cmi.contrastive_weight, config.cmi.temperature = 0.8, 0.2
    config.inversion.class_weight = config.inversion.feature_weight = 1.0
    config.inversion.adversarial_weight, config.inversion.adversarial = 0.5, "kl"
    config.inversion.feature = "plain"


def scratch(config):
    """CMI's script that begins without images: the contrast's temperature is 0.1, the student's rate falls to 0."""
    config.cmi.temperature = 0.1
    cmi_scripts.student(config)


def adversarial(config):
    """CMI's `adv_cmi`: 40 calls after each of which the student takes 2,000 steps of 128; the class term weighs 0.5."""
    scratch(config)
    config.calls, config.kd.steps_per_call, config.kd.batch = 40, 2000, 128
    config.inversion.class_weight = 0.5


def get_config(variant=None):
    """The config of 'dataset-teacher-student[-protocol]'; without one, WRN-40-2 -> WRN-16-1 on CIFAR-10."""
    return cifar.make_method(published, variant, {"scratch": scratch, "adversarial": adversarial})
