"""Text of recordings: emissions, decoders, and files of transcripts."""
