"""V-JEPA's networks on one flat token axis: encoder, predictor, and what they cost.

Imports: torch, numpy and kernels/; plain arguments instead of a config.
Elsewhere: the step and the EMA teacher (training/), reading published weights (weights/).

Shapes: B clips, T frames of H x W pixels; N = T'·H'·W' tokens of a clip's grid, raster order, time
slowest; M mask specs; D width of the encoder, P of the predictor; Rc context rows and Rt target
rows of a micro-batch, all specs and clips end to end without padding: [rows, D], never [B, N, D].
"""
