"""Processes that edgert supervises, and the bytes that pass between them. Knows nothing of models."""
