"""The student's state, its KD step, and soft labels that stand for the teacher."""
