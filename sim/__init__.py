"""Simulated tasks and their experts."""
