"""What a run's config says: one typed JSON file, checked as a whole before anything starts.

May import errors, masks and models (model.py only); nothing that trains, decodes or evaluates.
The effect of a key belongs to the room that reads it. Other rooms import these names from here.
"""

from vjepa_fast.config.load import load_config, parse_config, translate_stored
from vjepa_fast.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "translate_stored"]
