"""Every step by the name that plans and the records use."""

from collections.abc import Mapping
from typing import Final

from conductor.steps import descriptions, images, marks, moves, publication, recovery, serving, settlement, snapshots
from conductor.steps.base import Action
from sanderling.model import plans

ACTIONS: Final[Mapping[str, Action]] = {
    plans.CREATE_IMAGE: images.CREATE_IMAGE,
    plans.DESCRIBE: descriptions.DESCRIBE,
    plans.DESCRIBE_STARTED: descriptions.DESCRIBE_STARTED,
    plans.DESCRIBE_STOPPED: descriptions.DESCRIBE_STOPPED,
    plans.PUBLISH: publication.PUBLISH,
    plans.AWAIT_SERVED: serving.AWAIT_SERVED,
    plans.AWAIT_RELEASED: serving.AWAIT_RELEASED,
    plans.RETRACT: publication.RETRACT,
    plans.REMOVE_IMAGE: images.REMOVE_IMAGE,
    plans.GROW_IMAGE: images.GROW_IMAGE,
    plans.DESCRIBE_CHANGED: descriptions.DESCRIBE_CHANGED,
    plans.PUBLISH_CHANGED: publication.PUBLISH_CHANGED,
    plans.CREATE_SNAPSHOT: snapshots.CREATE_SNAPSHOT,
    plans.DESCRIBE_ROLLING_BACK: descriptions.DESCRIBE_ROLLING_BACK,
    plans.ROLL_BACK_IMAGE: snapshots.ROLL_BACK_IMAGE,
    plans.DESCRIBE_ROLLED_BACK: descriptions.DESCRIBE_ROLLED_BACK,
    plans.REMOVE_SNAPSHOT: snapshots.REMOVE_SNAPSHOT,
    plans.PRUNE_SNAPSHOTS: snapshots.PRUNE_SNAPSHOTS,
    plans.CHECK_UNCLONED: snapshots.CHECK_UNCLONED,
    plans.CHECK_SNAPSHOT: snapshots.CHECK_SNAPSHOT,
    plans.RECOVER: recovery.RECOVER,
    plans.SETTLE: settlement.SETTLE,
    plans.FORGET: settlement.FORGET,
    plans.MARK: marks.MARK,
    plans.UNMARK: marks.UNMARK,
    plans.MARK_DISK: marks.MARK_DISK,
    plans.PLAN_DRAIN: moves.PLAN_DRAIN,
    plans.MOVE_PATHS: moves.MOVE_PATHS,
    plans.CHECK_EMPTY: moves.CHECK_EMPTY,
}
