"""The process mixed over its scale: exact conditioning, regression, classification."""
