"""What can be done with a model that is open: its files, graph and sessions together?"""
