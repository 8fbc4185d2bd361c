"""ACmix inside other packages that build networks from their own configuration files.

Each module is imported only by those who use its package. Nothing else in `acmix_zoo` imports them.
"""
