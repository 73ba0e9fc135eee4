"""What several formats share: bounded JSON, chat messages, encodings, list elements."""
