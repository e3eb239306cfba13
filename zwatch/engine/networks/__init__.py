"""The networks of a Z-Image pipeline, in torch alone: importing the libraries' takes longer than everything else at a start."""
