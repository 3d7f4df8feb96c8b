"""Generator of the demo's items and training of its models (`souping/demo`)."""
