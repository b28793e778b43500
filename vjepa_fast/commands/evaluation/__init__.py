"""Commands that evaluate a checkpoint by labels, and the one that gives videos their labels.

Imports evaluation and data.prepare, inside functions. Commands about weights belong in weights.
"""
