"""Every key of the configuration, with its unit and source. Other configs are overrides of this one only."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: Fast-5 for WRN-40-2 -> WRN-16-1 as the published tables were made (METHOD section 2)."""
    config = ConfigDict()
    config.seed = 0  # of everything random
    config.mode = "all"  # 'all', 'synthesize' (fill the pool only) or 'distill' (from pool.initial only)
    config.dry_run = False  # print the plan and stop
    config.restart = False  # first move all that the workdir holds into a folder previous-N within it
    config.calls = 220  # 'epochs' of the released code: a batch is synthesised, then the student learns (METHOD 1.8)
    config.synthesis_calls = 0  # the first so many, after which the student learns alone; 0 for all
    config.synthesis_batch = 256  # images of a synthesis call; of FastDFKD, of each lane
    config.warmup_calls = 20  # first calls, after which the student does not train
    config.noise_control = False  # afterwards, train the same student on Gaussian noise images

    config.teacher = ConfigDict()
    config.teacher.checkpoint = ""  # of PyTorch, safetensors or Keras (docs/doors.md), or 'digits' (shipped)
    config.teacher.graph = ""  # or a folder of convert.record --graph, of any PyTorch network
    config.teacher.arch = ""  # name as in docs/models.md; '' where the checkpoint tells
    config.teacher.num_classes = 0  # 0 where the checkpoint tells
    config.teacher.image_size = 0  # pixels; 0 where the checkpoint tells, else the architecture's
    config.teacher.mean = ()  # per channel, of images in [0, 1]; () where the checkpoint tells
    config.teacher.std = ()

    config.student = ConfigDict()
    config.student.arch = "wrn16_1"
    config.student.graph = ""  # in place of arch: a folder of convert.record --graph
    config.student.checkpoint = ""  # weights to start from; '' for a fresh student

    config.data = ConfigDict()  # for evaluation only: nothing of it reaches synthesis or distillation
    config.data.source = ""  # 'tfds:cifar10', 'pickle:cifar10', 'npz:FILE', ... (docs/data.md); '' for none
    config.data.dir = ""  # where the source lies; '' for its default (~/tensorflow_datasets)
    config.data.split = "test"
    config.data.class_names = ""  # file of the teacher's classes in order, one a line; '' for the data's own order
    config.data.crop = 0.0  # of pictures: part of the shorter side that is kept, ImageNet's is 0.875; 0: as they are
    config.data.short_side = 0  # of images with a class for every pixel: pixels to which it is brought; 0: as they are
    config.data.batch = 256  # images an evaluation step

    config.transfer = ConfigDict()  # real images, for the methods that are given some and declare it; no other reads it
    config.transfer.source = ""  # as data.source
    config.transfer.dir = ""
    config.transfer.split = "train"
    config.transfer.short_side = 0  # as data.short_side
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
    config.fastdfkd.representation = "generator"  # 'pixels' (Table 5), or 'noisy_layer', after NAYER
    config.fastdfkd.label_dim = 64  # numbers in a label's embedding where the representation is 'noisy_layer'
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

    config.deepinversion = ConfigDict()  # METHOD 1.6 and 6; methods/deepinversion.py explains each
    config.deepinversion.num_steps = 2000  # of Adam on the pixels of a batch, at full size
    config.deepinversion.half_size_steps = 0  # before these, on 2x2 means
    config.deepinversion.learning_rate = 0.1  # in normalised pixels
    config.deepinversion.b1 = 0.5  # of Adam
    config.deepinversion.b2 = 0.99
    config.deepinversion.schedule = "constant"  # or 'cosine' after a linear warm-up (METHOD 6) ...
    config.deepinversion.rate_warmup_steps = 100  # ... of so many steps
    config.deepinversion.jitter = 4  # largest roll of the batch in pixels; an eighth of the side
    config.deepinversion.flip = True  # of the whole batch
    config.deepinversion.labels = "uniform"  # or 'balanced' (METHOD 6, CIFAR)
    config.deepinversion.images = "last"  # or 'best', after the step of the lowest loss
    config.deepinversion.class_weight = 1.0
    config.deepinversion.feature_weight = 10.0
    config.deepinversion.first_bn_multiplier = 1.0  # of the first BatchNorm within the feature term
    config.deepinversion.student_feature_weight = -0.001  # of the student's, within the feature term (METHOD 1.6)
    config.deepinversion.tv_l1 = 0.0  # total variation, mean absolute differences
    config.deepinversion.tv_l2 = 0.0  # total variation, norms of differences
    config.deepinversion.l2 = 0.0  # mean norm of an image
    config.deepinversion.adversarial_weight = 1.0
    config.deepinversion.adversarial = "jsd"  # clamped as in METHOD 1.6, or 'adi', 1 - JSD, unclamped (METHOD 8)
    config.deepinversion.jsd_temperature = 3.0

    config.cmi = ConfigDict()  # METHOD 1.5; methods/cmi.py explains each, `inversion` has the other terms
    config.cmi.num_steps = 200  # of a call
    config.cmi.learning_rate = 1e-3  # of the generator and the latents
    config.cmi.head_learning_rate = 1e-3
    config.cmi.contrastive_weight = 0.8  # 0 for no contrast, head or bank
    config.cmi.temperature = 0.2  # of the contrast
    config.cmi.bank_size = 40960  # images whose features are remembered; bank_size x features x 8 bytes
    config.cmi.negatives = 4096  # of them that each step meets
    config.cmi.head_dim = 256  # length of the vectors that are compared
    config.cmi.features = "batch_norm"  # or 'blocks', stages (the released code for ResNet-34)
    config.cmi.local_scale = (0.25, 1.0)  # share of an image that its local view shows

    config.dafl = _generative("dafl", 1000, lr=0.02, b1=0.9)  # METHOD section 6, as the next three
    config.dafl.student_steps, config.dafl.student_images = 1, "step"
    config.dafl.class_weight = 0.05  # of the cross-entropy with the teacher's own prediction; CIFAR-100: 0.5
    config.dafl.balance_weight = 5.0  # of the mean prediction's negative entropy, base 10; CIFAR-100: 20
    config.dafl.activation_weight = 0.01  # of minus the mean absolute feature; CIFAR-100: 0.1

    config.zskt = _generative("zskt", 100, lr=1e-3, b1=0.9)
    config.zskt.cosine, config.zskt.clip_norm = True, 5.0
    config.zskt.student_steps, config.zskt.student_images, config.zskt.student_mode = 10, "repeated", "train"
    config.zskt.attention_weight = 250.0  # of attention transfer; 0 unless both networks' stages are of one kind
    config.zskt.kl_reduction = "mean"  # over images and classes; or 'batchmean', over images (CMI's script)

    config.dfq = _generative("dfq", 512, lr=1e-3, b1=0.5)
    config.dfq.cosine = True
    config.dfq.student_steps = 10
    config.dfq.adversarial_weight = 1.0  # of -KL
    config.dfq.balance_weight = 0.01  # of the mean prediction's negative entropy, nats
    config.dfq.class_term = "entropy"  # of the predictions, nats; or 'argmax', cross-entropy with them (CMI's script)
    config.dfq.class_weight = 0.01
    config.dfq.statistics = "gaussian"  # KL of the BatchNorm statistics; or 'l2', Eq. 13 (CMI's script)
    config.dfq.statistics_weight = 0.01
    config.dfq.warmup_adversarial = False  # whether -KL is on before the student learns

    config.dfad = _generative("dfad", 256, lr=1e-3, b1=0.9)
    config.dfad.milestones = (100, 200)
    config.dfad.student_steps, config.dfad.student_mode = 5, "train"
    config.dfad.generator_loss = "l1"  # or 'log_l1', as for segmentation

    config.generative_dfd = ConfigDict()  # METHOD section 6; methods/generative_dfd.py explains each
    config.generative_dfd.generator = "generative_dfd"  # architecture, a key of models/generators/vector.py
    config.generative_dfd.latent_dim = 256  # numbers in z, beside the one-hot class
    config.generative_dfd.width = 64  # channels of the last hidden layer
    config.generative_dfd.lr = 1e-3  # Adam's; this recipe is ours, as none was released
    config.generative_dfd.b1 = 0.5
    config.generative_dfd.classes_per_generator = 1  # 0 for one generator of all classes
    config.generative_dfd.calls_per_generator = 4  # calls = classes / classes_per_generator times this, or more
    config.generative_dfd.steps_per_call = 500  # Adam steps in each
    config.generative_dfd.batches_kept = 20  # batches of synthesis_batch images that a generator leaves
    config.generative_dfd.class_weight = 1.0
    config.generative_dfd.statistics_weight = 0.1  # of the plain feature loss (Eq. 13); more hides the class asked for
    config.generative_dfd.balance_weight = 0.0  # of the mean prediction's negative entropy, nats

    config.generator = ConfigDict()
    config.generator.kind = "linear"  # of a vector (METHOD 1.1); CMI's 'large' too; 'spatial' of a map (METHOD 1.4)
    config.generator.latent_dim = 256  # numbers in z, or channels of the map
    config.generator.width = 64  # channels of the last hidden layer

    config.inversion = ConfigDict()  # Eq. 13 and 15; methods/parts/inversion_loss.py explains each
    config.inversion.class_weight = 0.4
    config.inversion.adversarial_weight = 1.1
    config.inversion.feature_weight = 10.0
    config.inversion.adversarial = "kl"  # 'kl' (METHOD T5) or 'jsd' (Eq. 13)
    config.inversion.jsd_temperature = 3.0  # tau
    config.inversion.feature = "momentum"  # 'momentum' (Eq. 15) or 'plain' (Eq. 13)
    config.inversion.statistic = "variance"  # 'variance' (METHOD T3) or 'deviation' (Eq. 13)
    config.inversion.accumulator_weight = 0.9  # 1 - m (METHOD T3)
    config.inversion.crop_padding = 4  # pixels
    config.inversion.least_crop = 0.0  # least share of the area in a resized crop, in place of shifts; 0 for these
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
    config.kd.rate_warmup_steps = 0  # first steps, in which the rate rises linearly to that of its schedule
    config.kd.ema_decay = 0.0  # of an average of the student's weights, which is evaluated and exported; 0 for none
    config.kd.momentum = 0.9  # of SGD
    config.kd.nesterov = False
    config.kd.weight_decay = 1e-4
    config.kd.clip_norm = 0.0  # largest norm of the whole gradient; 0 for any
    config.kd.crop_padding = 4  # pixels
    config.kd.least_crop = 0.0  # as inversion.least_crop
    config.kd.flip = True
    config.kd.cutmix = 0.0  # probability that a batch is mixed (docs/methods.md)
    config.kd.square = 0  # side in pixels of what is first cut out of larger images at random; 0 for whole ones
    config.kd.cutmix_alpha = 1.0  # of Beta(alpha, alpha), the share that an image keeps of itself
    config.kd.steps_per_dispatch = 20  # steps compiled into one program

    config.pool = ConfigDict()
    config.pool.place = "device"  # where the student's images are read from: 'device' memory, or 'disk' as it learns
    config.pool.draw = (
        "replacement"  # each image of a batch by itself; 'passes': each once in a shuffled pass, as released
    )
    config.pool.initial = ""  # folder of images, or an earlier run's workdir, to begin with

    config.soft_labels = ConfigDict()  # the teacher answers once a view, and the student meets it again and again (FKD)
    config.soft_labels.steps = 0  # student steps that are stored, once all images are there; 0: it answers every step
    config.soft_labels.top_k = 0  # probabilities stored of each view, the rest spread evenly; 0: all logits, float16
    config.soft_labels.dir = ""  # folder, which runs on the same images may share; '' for workdir/soft_labels
    config.soft_labels.seed = 0  # of the stored views

    config.replay = ConfigDict()  # how the student draws from D'; pool/sampling.py explains each, all 0 is uniform
    config.replay.class_exponent = 0.0  # 1: every class as often, as the teacher sees them
    config.replay.difficulty_exponent = 0.0  # of the student's divergence from the teacher
    config.replay.importance_exponent = 0.0  # of the loss weight that undoes the bias

    config.eval_every = 10  # calls
    config.checkpoint_every = 10  # calls
    config.images_every = 20  # calls between PNG grids

    config.precision = "float32"  # or 'bfloat16', of convolutions and activations
    config.conv_gradient = "auto"  # 'cpu' (fast there), 'xla' (accelerators, exact MAML), 'auto' chooses
    config.remat = "none"  # kept for the backward pass: all, 'activations' convolution outputs, 'blocks' block outputs
    config.profile = False  # trace the second call of this start, into workdir/profile
    config.compilation_cache = ""  # folder of compiled programs; never carry it to another machine

    config.parallel = ConfigDict()
    config.parallel.task_devices = 1  # devices that share the lanes (pmap)
    # Devices that share each batch (sharding), or those of KD alone where lanes are shared; 0 for every core of a CPU,
    # the task_devices, or all devices of several processes, else 1
    config.parallel.batch_devices = 0
    config.parallel.cpu_devices = 0  # split the CPU into so many devices; 0 for one a core
    config.parallel.hosts = "one"  # several: 'cluster' where JAX finds them, or HOST:PORT of process 0; docs/scale.md
    config.parallel.processes = 0  # how many where hosts is HOST:PORT ...
    config.parallel.process = 0  # ... and the number of this one, from 0
    config.parallel.lost_after = 100.0  # seconds without a sign of life after which another process is taken for lost
    return config


def _generative(generator: str, latent_dim: int, lr: float, b1: float) -> ConfigDict:
    """What the methods whose batches live once share; methods/parts/online_generator.py explains each."""
    section = ConfigDict()
    section.generator = generator  # architecture (models/generators/by_kind.py); CMI's scripts: 'large'
    section.latent_dim = latent_dim  # numbers in z
    section.width = 64  # channels of the last hidden layer
    section.lr = lr  # Adam's, for the generator
    section.b1 = b1
    section.cosine = False  # whether the rate falls to 0 over the run
    section.milestones = ()  # calls after which the rate is multiplied by ...
    section.lr_decay = 0.1
    section.clip_norm = 0.0  # largest norm of the generator's gradient; 0 for any
    section.generator_steps = 1  # of a round, before the student's
    section.student_steps = 1  # of a round
    section.student_images = "fresh"  # for each of them; or 'step', those of the generator's, or 'repeated'
    section.student_mode = "eval"  # BatchNorm of the student in the generator's step: 'train', the batch's statistics
    section.ema_decay = 0.0  # of an averaged generator that makes half of the student's images (MAD); 0 for none
    return section
