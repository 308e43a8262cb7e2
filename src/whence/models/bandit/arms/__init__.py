"""Bandits whose actions are arms: beliefs, policies, environments and bounds."""
