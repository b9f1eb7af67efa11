"""On-policy distillation of small MLX language models: state and control (light), training (heavy).

Importing this package, or any of its light modules, never imports MLX: see DESIGN notes in CONTRIBUTING.md.
"""

__version__ = "0.2.0"
