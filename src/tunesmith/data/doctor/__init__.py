"""The data doctor: what is in a data set and what is wrong with it, row by row, in bounded memory.

``checks/<name>.py`` is one check each, found by its name; ``examine`` takes the rows through all of them; ``fix`` writes the
cleaned copy. It knows no tokens: ``render.checks`` holds what needs a model's tokenizer.
"""
