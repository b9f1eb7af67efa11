"""The programs that start this server: where they keep their lists, and how it is entered there."""
