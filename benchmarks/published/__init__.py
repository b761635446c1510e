"""What does a published model lose and win, beside what a user would take instead?"""
