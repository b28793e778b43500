"""Views of videos (segments x crops) and their features, streamed from an encoder or stored.

Imports data, inference, errors, kernels and progress; what is learned from features, in heads.
"""
