"""Custom classes: stems, models, optimizers, schedules and data sources of the user's own.

One is named FILE.py:Class(setting=value) or package.module:Class(setting=value) wherever a name is
accepted. Importing a file runs it, so only bytes whose SHA-256 is trusted are imported (`consent`).
All of this is free of torch at import.
"""

from vitc.plugins.consent import trust

__all__ = ["trust"]
