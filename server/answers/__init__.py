"""From what the use cases return to what a person or an assistant reads: one file an answer, with its key facts."""
