"""The configuration of a run: one typed JSON file, checked as a whole before anything starts.

Imports errors, masks and models (for their value types), and nothing that trains.
What a key does belongs in the room that does it; import the names below from here.
"""

from vjepa_fast.config.load import translate_stored
from vjepa_fast.config.schema import Config, load_config, parse_config

__all__ = ["Config", "load_config", "parse_config", "translate_stored"]
