"""Filters for the technical quality of the picture: noise, blur, exposure, compression, fields."""
