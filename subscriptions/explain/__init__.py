"""Why did a uid hear, or not hear, a message: from what is stored to one verdict."""
