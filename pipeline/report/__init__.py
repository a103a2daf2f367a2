"""The report page and what else a person reads about a dataset: calibration, what-if, summary.

Start at page.py. May import everything below it in pipeline/.
"""
