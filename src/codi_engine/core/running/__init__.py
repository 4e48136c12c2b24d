"""From a plan to a committed run: stages, units, the gate, several devices."""
