"""Membership inference: was this record among those that the model was trained on?"""
