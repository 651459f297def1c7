"""The six checks of a deployment, one file each: ``check(subject, served, …) -> export.deploy_report.Check``."""
