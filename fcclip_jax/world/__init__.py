"""THE SMALL WORLD: scenes of emoji, drawn from free pictures by code; no jax here."""
