"""Methods that learn from labelled pixels."""
