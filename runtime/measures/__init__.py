"""What does a model do on data: ranges, divergence, perplexity, tasks, time?"""
