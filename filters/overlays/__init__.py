"""Filters for what was put over or around the picture: text, logos, watermarks, bars."""
