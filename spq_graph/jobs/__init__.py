"""What does a verb do, as a function?"""
