"""Folders that transformers loads: both generations, and the second with a classifier.

Imports evaluation, models and the files of the folder above; transformers inside functions.
modeling_vjepa.py is never imported, it is copied into exports of the first generation.
"""
