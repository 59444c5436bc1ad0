"""Pure loss functions that two or more methods share."""
