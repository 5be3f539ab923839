"""Whether the semivariogram loss localises better than plain InfoNCE, and by how much."""
