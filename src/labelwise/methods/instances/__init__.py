"""Methods that learn from the shapes of single objects."""
