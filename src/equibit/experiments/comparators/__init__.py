"""What a user might take instead: networks of other packages and xTB behind the same interface."""
