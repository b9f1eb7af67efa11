"""What each tool and route takes: a model each, checked in one place."""
