"""Generator of the pantry's items and training of its models (`souping/pantry`)."""
