"""From an experiment to its plan: conditions, donors, controls, cells, and what they will cost. No weight is loaded here."""
