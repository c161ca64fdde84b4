"""Word error rates of transcripts against references."""
