"""Inputs that are broken on purpose, for everything that reads a file from elsewhere."""
