"""Losses as pure functions: tensors in, tensors out; no model, no I/O, no distribution.

A preference loss is one file: its options, which are part of the recipe, and its formula. To add
one, write the file and name it in the union `DPOLoss` of `caravan.recipe`. Importing a file takes
no torch, since a recipe is read without it.
"""
