"""Scores, one protocol per file; integer counts that add up exactly over images and processes."""
