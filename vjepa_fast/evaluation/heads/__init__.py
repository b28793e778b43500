"""Many probe heads trained in one pass over frozen features, as batched parameters.

Imports evaluation.attentive_classifier and models; features, labels and results belong outside.
"""
