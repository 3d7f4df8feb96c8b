"""`plan=true`: what a run would do, cost and need, from headers, published scores and the store. No weight is read."""

from souping.pipeline.requirements import check_installed, check_room
from souping.planning.planner import Plan, make, plan

__all__ = ["Plan", "check_installed", "check_room", "make", "plan"]
