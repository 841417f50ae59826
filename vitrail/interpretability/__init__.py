"""Model and image -> map -> picture: what a trained model looks at, without any change to the model.

`explain.explain` is the one call; `rollout`, `attention` and `gradcam` compute the maps, `draw` makes the pictures.
"""
