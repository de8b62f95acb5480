"""What a report shows of a lake: tables summed up, a map of its embeddings, thumbnails."""
