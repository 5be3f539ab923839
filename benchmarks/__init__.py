"""What the operators cost, next to naive torch and to their own matrix products: `python -m benchmarks`."""
