"""ACmix in packages that build networks from their own configuration files.

Import the module of the package that you use. Nothing else in `acmix_zoo` imports these modules.
"""
