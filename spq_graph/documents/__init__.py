"""What is written down: recipe, ranges, plan, report, and the folder OUT?"""
