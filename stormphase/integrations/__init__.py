"""What brings phases into other frameworks; each module says which one, and needs the extra of its name."""
