"""How copies by `vjepa-fast transcode` may be encoded: the videos, the settings, what they cost.

May import the package and bench/common.py.
The command is bench/video/transcode.py; bench/decode.py compares decoders on plain videos.
"""
