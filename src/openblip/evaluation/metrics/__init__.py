"""Metrics: functions of predictions and references. They know no model and import no torch."""
