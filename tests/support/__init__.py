"""What several tests, and programs that tests start, share."""
