"""`plan=true`: what a run would do, cost and need, from headers, published scores and the store. No weight is read."""

from souping.planning.missing import check as check_installed
from souping.planning.planner import Plan, make, plan
from souping.planning.room import check as check_room

__all__ = ["Plan", "check_installed", "check_room", "make", "plan"]
