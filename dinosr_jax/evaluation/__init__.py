"""How good what was learnt is: numbers and figures from arrays and files."""
