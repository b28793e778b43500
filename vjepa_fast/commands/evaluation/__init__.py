"""Commands that evaluate a checkpoint by labels.

Imports evaluation, inside functions. Commands about weights and features belong in weights.
"""
