"""Checkpoints: folders of models and adapters as trainers and the Hub write them, read without trust."""
