"""Imported before grpc, which reads this once: what core writes to stderr by itself is no line of a log.

A port that is taken, for one, is told by the log in one line, and by core in lines of its own. GRPC_VERBOSITY=ERROR
has them back.
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")
