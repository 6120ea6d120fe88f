"""Inverse value learning: what post-training does to one model's logits, learned by a value network and added to other models."""
