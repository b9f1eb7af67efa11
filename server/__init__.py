"""The front door: protocol and presentation; no maths, no SQL, no MLX."""
