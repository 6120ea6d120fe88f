"""What a candidate is: values, where they lie, what moves and by how much, and the dense oracle."""
