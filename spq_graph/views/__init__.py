"""How is it shown: in words, as a table, as a page?"""
