"""Several models, or one finished run -> numbers and a page: `cost` counts and times, `report` writes."""
