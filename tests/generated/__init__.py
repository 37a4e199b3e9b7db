"""Hypothesis strategies for what a user may type and name: response tables, experiment files and whole commands.

Most of what they make is nearly right, since nonsense is refused at the door: good tables and files with a few hostile
cells, keys, bytes or options in them.
"""

from tests.generated.commands import CASES, Case

__all__ = ["CASES", "Case"]
