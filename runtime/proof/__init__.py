"""What really ran, and what can run here?"""
