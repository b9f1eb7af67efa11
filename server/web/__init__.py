"""The HTTP door: how it listens, whom it lets in, what it reads, how it says no."""
