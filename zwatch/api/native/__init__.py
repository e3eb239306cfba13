"""The native API, one module per subject."""
