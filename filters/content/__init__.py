"""Filters for what the picture shows, mostly by a network on sampled frames."""
