"""The networks computed faster: fused operations between the matrix products, rounded once instead of after each step."""
