"""codi-engine: kernels."""
