"""What is in a file of weights: its tensors, our names for them, and the model that follows.

Imports errors, models and weights.published. The entry is weights/open_file.py.
Names of one form alone, without a file, belong in weights/published.py and its neighbours.
"""
