"""Which words are there: site, role, precision, target, kernel, segment, error?"""
