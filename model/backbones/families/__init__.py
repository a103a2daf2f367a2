"""One file for each family of models that diffusers knows: how its transformer is called, trained and extended in time.

Start at base.py, then wan.py. `stable_diffusion.py` and `pixart.py` inflate image models. May import what
model.backbones may.
"""
