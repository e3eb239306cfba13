"""Replicas of one service on several devices and hosts, under Ray: one controller, one queue, one moment of promotion."""
