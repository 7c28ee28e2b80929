"""What an adapter is and how feedback changes it. Knows torch; no web, no Redis."""
