"""What a model is trained for: (model, batch) -> loss. The loop knows no task, a task knows no loop."""
