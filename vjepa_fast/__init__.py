"""Fast V-JEPA pretraining: Triton kernels, a C++ mask sampler, DeepSpeed ZeRO and DALI."""

__version__ = "0.1.0"
