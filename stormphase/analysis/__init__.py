"""Pure functions from what journals say to what it means; they read no clock, no file and no environment."""
