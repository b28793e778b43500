"""What a fine-tuning's config says: its own JSON file, checked as a pretraining's is.

Imports the sections and messages of config/; config/ imports nothing from here.
Whether the checkpoint and the labels fit is checked where they are read, in finetuning/.
"""
