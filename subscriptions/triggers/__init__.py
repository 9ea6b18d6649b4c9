"""The SQL that keeps versions and the change log: one module a database, one that installs."""
