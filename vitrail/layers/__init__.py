"""Tensors in, tensors out: the parts that papers share. Knows no model, no file, no recipe."""
