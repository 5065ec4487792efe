"""The student's state, its KD step, and stored soft labels that replace the teacher."""
