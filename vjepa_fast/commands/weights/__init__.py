"""The commands that take weights in, give them out, or use them: import, export, features.

Imports exchange and inference, inside functions, so that the command line starts at once.
The work itself belongs in those rooms.
"""
