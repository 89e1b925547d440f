"""How each kind of benchmark is predicted and scored, one file each."""
