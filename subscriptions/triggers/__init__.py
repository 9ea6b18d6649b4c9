"""How a database is made to count its own membership changes: its SQL, and the installing."""
