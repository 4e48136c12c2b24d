"""Runs on disk: layout, ledger, writer, reader. Imports nothing of the other rooms."""
