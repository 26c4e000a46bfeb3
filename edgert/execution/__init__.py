"""A plan in execution."""
