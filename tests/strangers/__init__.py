"""Architectures that others invented, written anew in their idiom and made small: what a user may bring."""

from strangers import attention, dense, detection, mobile, other, segmentation, sequence
from strangers.stranger import Stranger

FAMILIES = (mobile, dense, segmentation, detection, sequence, attention, other)
STRANGERS: list[Stranger] = [stranger for family in FAMILIES for stranger in family.STRANGERS]
