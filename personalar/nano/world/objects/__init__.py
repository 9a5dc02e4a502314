"""Individuals of the twelve classes: solids, their surfaces, and the ray caster that draws them."""
