"""Falling learning rates for the student and for a generator that learns beside it.

A generator that keeps its learning rate while the student's falls gets too far ahead of the student. The official DFAD
lowers both at the same milestones (METHOD section 8).
"""

from ml_collections import ConfigDict


def cosine(config: ConfigDict) -> None:
    """Lets the student's rate fall as a cosine to `kd.final_lr`, and that of the method's generator to 0."""
    config.kd.milestones = ()
    section = config.get(config.method.name, {})
    if "cosine" in section:  # only methods that train one generator beside the student have it
        section.cosine, section.milestones = True, ()
