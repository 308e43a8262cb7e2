"""Laws of the scale, mixtures of normals over it, and the quadrature that both need."""
