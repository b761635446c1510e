"""How is text continued?"""
