"""Methods that learn from boxes of every image."""
