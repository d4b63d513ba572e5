"""What the predictions should have been: matching and loss terms, pure functions."""
