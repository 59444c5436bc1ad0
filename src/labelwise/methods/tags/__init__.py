"""Methods that learn from image tags."""
