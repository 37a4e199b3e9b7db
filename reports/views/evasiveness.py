"""Evasiveness: rates by arm and along RL."""

from reports import dashboard, figures

run = dashboard.begin("Evasiveness")
for draw in (figures.evasiveness, figures.evasiveness_along):
    dashboard.show(run, draw)
