"""Where tasks come from: text sources, and the families that turn them into episodes."""
