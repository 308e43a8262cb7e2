"""Linear Gaussian systems: filters and smoothers that several families of models share."""
