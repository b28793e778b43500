"""How a run's state is written to disk, read back and resumed.

format.py reads and needs no DeepSpeed and no trainer; writer.py and resume.py work on a `Trainer`.
When to save is the loop's decision; which setting belongs to a recipe is in training/recipe.py.
"""
