"""The stages of a study: each reads what the stage before it wrote, and returns at once when its result is complete."""
