"""Peers, installed from public packages and configured fairly, to be measured beside keypeer."""
