"""Engines: one folder for each family. They import `core` only."""
