"""personalar: personalize autoregressive text-to-image models in two stages.

Importing this loads nothing heavy.
"""

__version__ = "0.1.0"
