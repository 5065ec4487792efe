"""What commands share: arguments, configs from the command line, messages, exit status and signals.

Importing this keeps XLA's log off the terminal, where it prints boxes about slow compilation. Its errors are raised
too, and reach the user from there. `--verbose` and TF_CPP_MIN_LOG_LEVEL=0 show the log. A command imports this before
JAX, which reads the setting once.
"""

import os
import sys

if "--verbose" not in sys.argv:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # fatal errors only
