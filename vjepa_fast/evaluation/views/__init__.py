"""Views of videos (segments x crops) and their features, streamed from an encoder or stored.

Imports data, inference, kernels, locks, models, weights. Learning from features belongs in heads.
"""
