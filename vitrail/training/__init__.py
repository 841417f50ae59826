"""Batch to trained model: the loop, the optimiser, evaluation, prediction."""
