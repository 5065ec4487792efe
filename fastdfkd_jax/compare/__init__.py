"""`fastdfkd compare`: runs many configurations on equal terms, and makes tables and figures from them."""
