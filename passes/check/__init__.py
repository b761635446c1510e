"""Is the graph what plan and target say?"""
