"""What is typed, and what does the shell get back?"""
