"""Several models, or one finished run -> numbers and a page. `report` is of a run, `inspection` of what a model has
learned, `compare` of several models alike, `robustness` of what they bear, `studies` re-run published claims.
"""
