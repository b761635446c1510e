"""What does one decoder layer look like, as boxes?"""
