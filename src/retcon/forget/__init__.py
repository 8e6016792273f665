"""Editing as unlearning: questions whose answers must go, and what a model may say in their place."""
