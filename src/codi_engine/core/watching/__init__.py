"""What a run tells those who look on: trackers, its own log, progress, status, notes."""
