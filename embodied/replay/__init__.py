"""Rerun recordings of rollouts and episodes."""
