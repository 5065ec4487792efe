"""Falling rates: the student's, and with it that of a generator that learns beside it.

A generator that keeps its rate while the student's falls runs away from the student. Official DFAD lowers both at the
same milestones (METHOD section 8).
"""

from ml_collections import ConfigDict


def cosine(config: ConfigDict) -> None:
    """The student's rate falls as a cosine to `kd.final_lr`, and the chosen method's generator's as one to 0."""
    config.kd.milestones = ()
    section = config.get(config.method.name, {})
    if "cosine" in section:  # as in those of the methods that train one generator beside the student
        section.cosine, section.milestones = True, ()
