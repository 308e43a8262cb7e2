"""Laws of the weights of networks, and networks that have them."""
