"""Methods that learn from masks of every image."""
