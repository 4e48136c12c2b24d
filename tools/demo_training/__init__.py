"""Training of the small CODI model that ships with codi-engine as its demo."""
