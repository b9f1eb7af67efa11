"""What changes in a home, told as it happens: the feed, its messages and its doors."""
