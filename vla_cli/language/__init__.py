"""Instructions in words: what they ask for, other words for it, what else could be asked, and what is wrong with them.

text  --tokens-->  words and marks  --grammar-->  Parsed: verb, object, place
                                     (by the lexicon: `phrasings.yaml`, and a user's own)

phrasing          the same task in other words
counterfactuals   another object, another place, told from the data
alternatives      what else could be asked, as a user's YAML says it
lint              what is wrong with the instructions of a set
"""
