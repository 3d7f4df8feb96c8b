"""Weight searches: settings that are checked when they are made, and the optimisers that they start."""
