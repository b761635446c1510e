"""Which rule decides: what stays, in which format, ready or not?"""
