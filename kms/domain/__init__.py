"""Frozen values that all floors share: what is stored, and what is passed between a flow and a pure check.

Times are Unix seconds.
"""
