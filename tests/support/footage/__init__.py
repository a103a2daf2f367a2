"""Videos that tests write, damage or draw, with known answers."""
