"""How well an artifact adapts on tasks it never saw, beside the plain alternatives."""
