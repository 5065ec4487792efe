"""A pickle that does harm where it is loaded without care."""

import os
from pathlib import Path


class Runs:
    """What a malicious file would do: make a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)
