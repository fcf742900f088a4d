"""The command line: each command is a few lines over the Python API, in a file of its own.

Nothing here imports torch at the top: `--help`, `--version`, `methods` and `recipes` answer without it.
"""

from bitwright.cli.run import main

__all__ = ["main"]
