"""Loss terms on logits, class activation maps and features."""
