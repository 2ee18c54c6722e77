"""The journal: a file that says after any death what a rank was doing."""
