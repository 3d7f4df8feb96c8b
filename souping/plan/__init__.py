"""What a run will do and cost, before it starts; and its check on a few items."""
