"""Where is a graph cut, so that memory holds one piece at a time?"""
