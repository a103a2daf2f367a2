"""Child processes that decode untrusted media, and what they send back. Start at sandbox.py. May import faults.py."""
