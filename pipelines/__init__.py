"""How each arm is trained. `arms.py` says who uses what; the other files hold one method each."""
