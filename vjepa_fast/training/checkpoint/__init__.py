"""How a run's state is written to disk, read back and resumed.

format.py reads and needs no DeepSpeed and no trainer; writer.py and resume.py work on a `Trainer`.
The loop decides when to save; training/recipe.py lists the settings that a resume may change.
"""
