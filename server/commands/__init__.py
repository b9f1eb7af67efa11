"""What `opd` does in a terminal beside serving."""
