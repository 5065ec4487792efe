"""How the student's rate falls over a run, and with it the rate of a generator that learns beside it.

A generator that keeps its rate while the student's falls runs away from the student. Official DFAD lowers both at the
same milestones (METHOD section 8).
"""

from ml_collections import ConfigDict

# The methods that train one generator beside the student; each has a section of its name.
GENERATIVE = ("dafl", "zskt", "dfq", "dfad")


def cosine(config: ConfigDict) -> None:
    """The student's rate falls as a cosine to `kd.final_lr`, and the chosen method's generator's as one to 0."""
    config.kd.milestones = ()
    if (name := config.method.name) in GENERATIVE:
        config[name].cosine, config[name].milestones = True, ()
