"""Filters for what moves and how: the camera and subjects; and the optical flow that they read."""
