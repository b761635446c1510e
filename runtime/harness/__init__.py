"""What does lm-evaluation-harness ask, where do its tasks come from, and what does a model score on them?"""
