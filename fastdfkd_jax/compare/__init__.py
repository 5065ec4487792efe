"""`fastdfkd compare`: many runs on equal terms, and the tables and figures made of them."""
