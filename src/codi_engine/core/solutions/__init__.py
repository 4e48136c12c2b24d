"""Answers and annotated solutions, read as numbers and as algebra."""
