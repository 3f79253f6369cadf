"""driving."""
