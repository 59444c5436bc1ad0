"""Methods that learn from masks of which some are wrong."""
