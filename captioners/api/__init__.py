"""Captioners that ask a server (`server`) or Ray's LLM processors (`ray_llm`).

May import captioners.text.
"""
