"""codi-engine: plugins/demo."""
