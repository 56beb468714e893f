"""What the server promises its sessions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionSettings:
    """`sessions` of conf/serve.yaml."""

    most_sessions: int = 64
    largest_batch: int = 1  # requests computed in one step; 1: a session's actions are bit-equal whoever else is there
    deadline_periods: float = 1.0  # of the control rate (times the policy's inference delay), where a client says none
    repeats_history: bool = False  # the newest observation stands for missing ones of a history; else they are refused
    reset_after_s: float = 60.0  # without a request: the next one begins a new episode
    longest_wait_s: float = 30.0  # for an answer, whatever happens
    seed: int = 0  # of the episodes' noise
    threads: int = 1  # of torch
