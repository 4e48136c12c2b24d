"""codi-engine: cli."""
