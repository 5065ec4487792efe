"""Every key of the configuration, with its unit and source. Other configs are overrides of this one only."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: Fast-5 for WRN-40-2 -> WRN-16-1 as the published tables were made (METHOD section 2)."""
    config = ConfigDict()
    config.seed = 0  # of everything random
    config.mode = "all"  # 'all', 'synthesize' (fill the pool only) or 'distill' (from pool.initial only)
    config.dry_run = False  # print the plan and stop
    config.calls = 220  # synthesis calls, 'epochs' of the released code; one batch each (METHOD 1.8)
    config.synthesis_batch = 256  # images of a synthesis call; of FastDFKD, of each lane
    config.warmup_calls = 20  # first calls, after which the student does not train
    config.noise_control = False  # afterwards, train the same student on Gaussian noise images

    config.teacher = ConfigDict()
    config.teacher.checkpoint = ""  # .safetensors, .pth, .pt, .th, or 'digits' (shipped with the package)
    config.teacher.graph = ""  # or a folder of convert.record --graph, of any PyTorch network
    config.teacher.arch = ""  # name as in docs/models.md; '' where the checkpoint tells
    config.teacher.num_classes = 0  # 0 where the checkpoint tells
    config.teacher.image_size = 0  # pixels; 0 where the checkpoint tells, else the architecture's: 32, or 224
    config.teacher.mean = ()  # per channel, of images in [0, 1]; () where the checkpoint tells
    config.teacher.std = ()

    config.student = ConfigDict()
    config.student.arch = "wrn16_1"
    config.student.graph = ""  # in place of arch: a folder of convert.record --graph
    config.student.checkpoint = ""  # weights to start from; '' for a fresh student

    config.data = ConfigDict()  # for evaluation only: nothing of it reaches synthesis or distillation
    config.data.source = ""  # 'tfds:cifar10', 'pickle:cifar10', 'npz:FILE', 'folder:DIR', 'digits'; '' for none
    config.data.dir = ""  # where the source lies; '' for its default (~/tensorflow_datasets)
    config.data.split = "test"
    config.data.batch = 256  # images an evaluation step

    config.transfer = ConfigDict()  # real images, for the methods that are given some and declare it; no other reads it
    config.transfer.source = ""  # as data.source
    config.transfer.dir = ""
    config.transfer.split = "train"
    config.transfer.crops = 0  # 0: a labelled data set as it is; n: n random crops of each picture, without labels
    config.transfer.limit = 0  # most images; 0 for all
    config.transfer.select = 0  # how many a method that chooses (DFND) keeps; 0 for all

    config.method = ConfigDict()
    config.method.name = "fastdfkd"  # docs/methods.md has all; 'noise' is the control

    config.fastdfkd = ConfigDict()  # Algorithm 1; methods/fastdfkd.py explains each
    config.fastdfkd.num_adapt_steps = 5  # k
    config.fastdfkd.num_tasks = 1  # lanes whose meta-gradients are reduced to one
    config.fastdfkd.task_reduction = "mean"  # 'mean', or 'sum' as in Eq. 11
    config.fastdfkd.reuse = "meta"  # 'meta', 'sequential' or 'none' (Table 5)
    config.fastdfkd.representation = "generator"  # or 'pixels' (Table 5)
    config.fastdfkd.meta_rule = "fomaml_sum"  # 'reptile', 'fomaml_sum', 'fomaml_last', 'fomaml_adapted', 'maml'
    config.fastdfkd.reptile_scale = 1.0  # factor of the Reptile difference (METHOD T1)
    config.fastdfkd.latents = "fresh"  # 'fresh', 'periodic' or 'persistent' (METHOD T2)
    config.fastdfkd.latents_period = 50  # calls between draws where periodic
    config.fastdfkd.latents_update = "none"  # 'none', 'adapted' (METHOD T2) or 'meta' (Eq. 11)
    config.fastdfkd.reset_optimizer_with_latents = False  # METHOD 1.4
    config.fastdfkd.images = "best"  # 'best' (METHOD T4), 'last' or 'adapted' (Algorithm 1 line 10)
    config.fastdfkd.reset_first_layer_at = 140  # call of the l0 reset, from 1; 0 for never (METHOD T7)
    config.fastdfkd.unroll = 1  # inner steps unrolled in the compiled loop

    config.kd_on_data = ConfigDict()  # the method 'kd': on real images (METHOD section 5)
    config.kd_on_data.label_weight = 0.1  # of the cross-entropy with their labels; those without have none

    config.dfnd = ConfigDict()  # METHOD section 6
    config.dfnd.teacher_accuracy = 0.9523  # share of right labels of the teacher
    config.dfnd.noise_weight = 1.0  # of the labels' loss beside KD
    config.dfnd.noise_lr = 1e-3  # Adam's, of the noise matrix

    config.generator = ConfigDict()
    config.generator.kind = "linear"  # of z a vector (METHOD 1.1), or 'spatial', of a map, for ImageNet (METHOD 1.4)
    config.generator.latent_dim = 256  # numbers in z, or channels of the map
    config.generator.width = 64  # channels of the last hidden layer

    config.inversion = ConfigDict()  # Eq. 13 and 15; methods/inversion.py explains each
    config.inversion.class_weight = 0.4
    config.inversion.adversarial_weight = 1.1
    config.inversion.feature_weight = 10.0
    config.inversion.adversarial = "kl"  # 'kl' (METHOD T5) or 'jsd' (Eq. 13)
    config.inversion.jsd_temperature = 3.0  # tau
    config.inversion.feature = "momentum"  # 'momentum' (Eq. 15) or 'plain' (Eq. 13)
    config.inversion.statistic = "variance"  # 'variance' (METHOD T3) or 'deviation' (Eq. 13)
    config.inversion.accumulator_weight = 0.9  # 1 - m (METHOD T3)
    config.inversion.crop_padding = 4  # pixels
    config.inversion.flip = True

    config.inner = ConfigDict()  # optimizer of the k steps
    config.inner.optimizer = "adam"  # or 'sgd', plain gradient descent (Eq. 6)
    config.inner.generator_lr = 3e-3  # METHOD section 2
    config.inner.latents_lr = 1e-2
    config.inner.b1 = 0.5  # of Adam
    config.inner.b2 = 0.999

    config.meta = ConfigDict()  # optimizer of the meta parameters: any of optax by name
    config.meta.optimizer = "adam"
    config.meta.lr = 0.015  # lr_g * k (METHOD T1)
    config.meta.kwargs = ConfigDict({"b1": 0.5, "b2": 0.999})

    config.kd = ConfigDict()  # the student's recipe (METHOD 1.8)
    config.kd.steps_per_call = 400  # t
    config.kd.batch = 256
    config.kd.temperature = 20.0
    config.kd.optimizer = "sgd"  # or 'adam'
    config.kd.lr = 0.2
    config.kd.final_lr = 2e-4  # end of the cosine over the calls with KD
    config.kd.milestones = ()  # instead of the cosine: numbers of calls with KD after which ...
    config.kd.lr_decay = 0.1  # ... the rate is multiplied by this
    config.kd.momentum = 0.9  # of SGD
    config.kd.nesterov = False
    config.kd.weight_decay = 1e-4
    config.kd.clip_norm = 0.0  # largest norm of the whole gradient; 0 for any
    config.kd.crop_padding = 4  # pixels
    config.kd.flip = True
    config.kd.steps_per_dispatch = 20  # steps compiled into one program

    config.pool = ConfigDict()
    config.pool.initial = ""  # folder of images, or an earlier run's workdir, to begin with

    config.eval_every = 10  # calls
    config.checkpoint_every = 10  # calls
    config.images_every = 20  # calls between PNG grids

    config.precision = "float32"  # or 'bfloat16', of convolutions and activations
    config.conv_gradient = "auto"  # 'canonical' (CPU), 'native' (accelerators, exact MAML), 'auto' chooses
    config.remat = "none"  # kept for the backward pass: all, 'activations' convolution outputs, 'blocks' block outputs
    config.profile = False  # trace the second call of this start, into workdir/profile
    config.compilation_cache = ""  # folder of compiled programs; never carry it to another machine

    config.parallel = ConfigDict()
    config.parallel.task_devices = 1  # devices that share the lanes (pmap)
    config.parallel.batch_devices = 0  # devices that share each batch (sharding); 0 for every core of a CPU, else 1
    config.parallel.cpu_devices = 0  # split the CPU into so many devices; 0 for one a core
    return config
