"""What the semivariogram costs, next to GSTools, scikit-learn and its own matrix product."""
