"""Bandits that play several actions at once, chosen by an oracle."""
