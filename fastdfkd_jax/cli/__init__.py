"""The parts that commands share: arguments, configs from the command line, messages, exit status and signals.

Importing this package keeps XLA's log, with its boxes about slow compilation, off the terminal. XLA's errors are also
raised as exceptions, so users still see them. `--verbose` or TF_CPP_MIN_LOG_LEVEL=0 shows the log. Commands import this
before JAX, which reads the setting only once.
"""

import os
import sys

if "--verbose" not in sys.argv:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors only
