"""Engines, which run units of work through stages: in threads of this process, or on Ray Data.

Start at base.py, the interface. local.py and ray_engine.py implement it; choice.py selects one of them. Independent of
video; may import state (units) and packages below it.
"""
