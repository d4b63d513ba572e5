"""Pure functions without parameters: arrays in, arrays out."""
