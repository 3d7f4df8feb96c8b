"""Plans: what a run would do, cost and need, from headers, published scores and the store. No weight is read."""
