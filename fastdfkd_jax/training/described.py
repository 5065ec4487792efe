"""Everything that a run records, described once: for the run's page, for the documentation, and for tests."""

from __future__ import annotations

import re
from typing import NamedTuple


class Metric(NamedTuple):
    """A value in metrics.jsonl.

    Attributes:
      title: short, with its unit.
      meaning: one sentence.
      normal: its course in a good run; '' if it has no typical one.
      remedy: the change to make if it differs; '' for none.
    """

    title: str
    meaning: str
    normal: str = ""
    remedy: str = ""


_CLASSES = (
    "Raise inversion.class_weight, lower inversion.feature_weight, or take more steps: KEY=VALUE after the command, "
    "with a new --workdir."
)

# Names in metrics.jsonl; an entry that ends in NAME describes all names with its beginning.
METRICS = {
    "call": Metric("Call", "The number of the synthesis call and the student's steps after it, from 1."),
    "synthesis/on_target": Metric(
        "Images on target, share",
        "Share of the call's images that the teacher assigns to the class that was asked for.",
        "Far above chance, 0.5 to 1.",
        _CLASSES,
    ),
    "synthesis/moment_gap": Metric(
        "Distance from the teacher's statistics",
        "Sum over BatchNorm layers of the distance between the images' moments and the running statistics (Eq. 13).",
        "Falls in the first calls, then stays.",
        "Raise inversion.feature_weight, or take more steps.",
    ),
    "synthesis/by_step/moment_gap": Metric(
        "Distance from the statistics, by step",
        "The same at up to 50 steps of the call, the first and the last among them.",
        "Falls from the first to the last.",
        "Lower inner.generator_lr and inner.latents_lr if it rises.",
    ),
    "synthesis/agreement": Metric(
        "Student on new images, share",
        "Share of the call's images on which student and teacher agree, before the student learns them.",
        "Rises as the student learns; low means that new images teach it something.",
    ),
    "synthesis/diversity": Metric(
        "Diversity of a batch",
        "Standard deviation of each pixel over the call's images, averaged; pixels are in [0, 1].",
        "0.1 to 0.4, and steady; near 0, all images are alike.",
        "Raise inversion.feature_weight or lower the generator's rate.",
    ),
    "synthesis/predicted": Metric(
        "Predicted classes, images",
        "How often the teacher predicts each class in the call.",
        "Every class has some.",
        _CLASSES,
    ),
    "synthesis/loss/first": Metric("Synthesis loss, first step", "The whole loss before the first step of the call."),
    "synthesis/loss/last": Metric(
        "Synthesis loss, last step",
        "The whole loss before the last step of the call.",
        "Below that of the first step.",
        "Lower inner.generator_lr if it is above.",
    ),
    "synthesis/loss/NAME": Metric(
        "A term of the synthesis loss", "One weighted or unweighted term of the method's loss at the last step."
    ),
    "kd/loss": Metric(
        "Student's loss, nats",
        "Mean over the call's steps of the distillation loss.",
        "Falls, and rises a little whenever new images arrive.",
        "Lower kd.lr if it rises for long.",
    ),
    "kd/agreement": Metric(
        "Agreement of student and teacher, share",
        "Share of training images on which both predict the same class, mean over the call's steps.",
        "Approaches 1.",
        "Train longer (calls, kd.steps_per_call), or use a larger student.",
    ),
    "kd/NAME": Metric("A part of the student's loss", "Of methods whose loss has several parts, each as a mean."),
    "eval/accuracy": Metric(
        "Student's accuracy, %", "On the labelled images that were given for evaluation.", "Rises and levels off."
    ),
    "eval/top5": Metric("Student's top-5 accuracy, %", "The right class is among the five likeliest."),
    "eval/miou": Metric(
        "Student's mIoU, %", "Intersection over union, averaged over classes.", "Rises and levels off."
    ),
    "eval/iou": Metric("IoU by class, %", "null for a class that is nowhere."),
    "eval/pixel_accuracy": Metric("Pixel accuracy, %", "Share of labelled pixels whose class is right."),
    "eval/loss": Metric("Evaluation loss, nats", "Mean cross-entropy on those images."),
    "eval/count": Metric("Evaluated images", "How many there were."),
}

AGREEMENT_REMEDY = (
    "Train longer (calls, kd.steps_per_call), use a larger student, or make more varied images. On CIFAR-10, Fast-10 "
    "reaches 74 % after 3,300 student steps and 89 % after 80,000."
)

# Keys of summary.json; SCORE is accuracy or miou.
SUMMARY = {
    "teacher": "architecture of the teacher",
    "student": "architecture of the student",
    "method": "name of the method",
    "knows": "the data that the method was given",
    "seed": "random seed",
    "score": "how students are scored: accuracy, or miou for segmentation",
    "teacher_SCORE": "the teacher's score, percent; null without labelled images",
    "student_SCORE_last": "the student's score after the last call, percent",
    "student_SCORE_best_on_test": "the best score after any call; chosen on the evaluation data, as papers report it",
    "noise_student_SCORE_last": "score of the noise control: the same student trained on Gaussian noise, percent",
    "agreement_held_out": "share of held-out synthetic images, or of their pixels, on which student and teacher "
    "predict the same class, percent. The images are one more batch of the method, which the student never saw "
    "(held_out/). Another run has other images: compare only with the noise control. *Normal:* within a few points of "
    "the last kd/agreement; on real images it may be lower, or higher if they are easier. "
    f"*If not:* {AGREEMENT_REMEDY}",
    "agreement_noise_images": "the same on Gaussian noise images. *Normal:* above chance, and lower than on held-out "
    "images. *If not:* the held-out images are harder for the student than noise: train longer.",
    "agreement_probe": "the same on the pictures of data.probe; without labels, the closest estimate of use. "
    "*Normal:* between the other two if the pictures resemble the teacher's data. *If not:* check their size, colours "
    f"and crop (data.crop). {AGREEMENT_REMEDY}",
    "noise_agreement_held_out": "agreement of the noise control's student on the same held-out images, percent. "
    "*Normal:* far below agreement_held_out. *If not:* the synthetic images teach no more than noise: raise the "
    "weights of synthesis, or take more steps.",
    "noise_agreement_probe": "agreement of the noise control's student on the pictures of data.probe, percent. "
    "*Normal:* far below agreement_probe. *If not:* as for noise_agreement_held_out.",
    "held_out_images": "number of held-out images",
    "probe_images": "number of pictures of data.probe",
    "probe": "last name of the folder data.probe",
    "warnings": "what was warned of during synthesis, each once, with advice; empty if nothing was",
    "images": "synthesised images",
    "synthesis_seconds": "seconds of synthesis",
    "distill_seconds": "seconds of the student's training",
    "label_seconds": "seconds in which the teacher made stored labels",
    "evaluate_seconds": "seconds of evaluation, including agreement and its held-out images",
    "compile_seconds": "seconds of compilation, including those of a plan before the run",
    "total_seconds": "seconds of all phases together",
    "seconds_measured_apart": "whether the seconds were measured apart, since the run shared its machine (`compare`)",
    "peak_memory_bytes": "most memory that was used: of a GPU, else of the process",
    "devices": "kinds of the devices",
}

# Names in the metrics.jsonl of `fastdfkd pretrain`, one line an epoch that is evaluated.
PRETRAINING = {
    "epoch": "passes over the training split so far",
    "train_loss": "mean training loss of the epoch, nats",
    "test_NAME": "a measurement on the test split, as eval/NAME above",
    "seconds": "seconds since the start of training, over all its resumptions",
}


def metric(name: str) -> Metric | None:
    """Returns the description of a name in metrics.jsonl."""
    return METRICS.get(name) or METRICS.get(re.sub(r"[^/]+$", "NAME", name))


def page() -> str:
    """Formats both lists in Markdown, for the documentation."""
    parts = ["# What a run records\n", "## metrics.jsonl\n", "One line of JSON for each record of a call.\n"]
    for name, found in METRICS.items():
        said = [
            found.meaning,
            found.normal and f"*Normal:* {found.normal}",
            found.remedy and f"*If not:* {found.remedy}",
        ]
        parts.append(f"`{name}`\n: {found.title}. {' '.join(filter(None, said))}\n")
    parts += ["## metrics.jsonl of pretrain\n", *(f"`{name}`\n: {meaning}\n" for name, meaning in PRETRAINING.items())]
    parts += ["## summary.json\n", *(f"`{name}`\n: {meaning}\n" for name, meaning in SUMMARY.items())]
    return "\n".join(parts)
