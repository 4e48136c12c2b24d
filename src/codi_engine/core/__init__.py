"""codi-engine: core."""
