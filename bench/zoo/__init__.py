"""Real shapes with seeded weights."""
