"""The names of the sides of a timed case, apart from what they import."""

TUNED = ("tuned", "compiled", "graphed")
FORMS = ("plain", *TUNED)
